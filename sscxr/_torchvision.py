"""Makes torchvision, and with it timm, importable beside a CPU-only torch.

torchvision's wheel is linked against CUDA. Beside a CPU-only torch its compiled operators do not load, and
`import torchvision` fails on the first one whose schema it extends. With those schemas declared first, the
rest of the package, which is all that timm uses, can be imported; calling the operators still fails.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_held: list[object] = []  # a Library's definitions last as long as the object


def make_importable() -> None:
    """Declare the schemas when torchvision is first imported; costs nothing until then."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchvision())


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing; it is called for torchvision before the finder that does."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            _declare()
        return None


def _declare() -> None:
    """Declare the operators' schemas if torchvision's own library cannot load; else do nothing."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    import torch

    if _loads(Path(spec.origin).parent):
        return
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _held.append(library)


def _loads(package: Path) -> bool:
    """Return whether torchvision's compiled operators load beside the installed torch."""
    import torch

    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        library = package / f"_C{suffix}"
        if library.is_file():
            try:
                torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
            except OSError:
                return False
            return True
    return False
