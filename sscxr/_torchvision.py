"""Makes torchvision, and with it timm, importable beside a CPU-only torch.

torchvision's wheel is linked against CUDA. Next to a CPU-only torch its compiled operators do not load, and
`import torchvision` fails on the first one whose schema it wants to extend. Declaring those schemas first
lets the rest of the package, which is all that timm uses, import; calling the operators still fails.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

_held: list[object] = []  # a Library's definitions last as long as the object


def make_importable() -> None:
    """Declare the operators' schemas where torchvision's own library cannot load; else do nothing."""
    if "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    if _loads(Path(spec.origin).parent):
        return
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _held.append(library)


def _loads(package: Path) -> bool:
    """Whether torchvision's compiled operators load beside the torch installed here."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        library = package / f"_C{suffix}"
        if library.is_file():
            try:
                torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
            except OSError:
                return False
            return True
    return False
