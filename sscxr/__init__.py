"""Federated self-supervised learning on chest X-rays: the science. It opens no socket but to download a release.

    import sscxr
    encoder = sscxr.load_encoder("runs/demo/encoder")   # a timm ViT; an address is fetched
    cache = sscxr.open_cache("CACHE")                   # images, masks, an index
    run = sscxr.Run("runs/demo")                        # its tables: sites, rounds, probes, config, status

Importing it takes some tens of milliseconds: numpy, pandas and torch come when they are needed.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sscxr import _torchvision

if TYPE_CHECKING:
    from torch import nn

    from sscxr.data.cache import open_cache
    from sscxr.runs import Run

__version__ = "0.1.0"
__all__ = ["Run", "load_encoder", "open_cache"]

_torchvision.make_importable()
_LATER = {"Run": "sscxr.runs", "open_cache": "sscxr.data.cache"}


def __getattr__(name: str) -> Any:
    """What is imported when it is first asked for (PEP 562)."""
    if name not in _LATER:
        raise AttributeError(f"module 'sscxr' has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_LATER[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER])


def load_encoder(path_or_url: str | Path, *, key: str | Path | None = None) -> "nn.Module":
    """A released encoder as a timm ViT in eval mode, fetched where an address is given and checked by its sums.

    Called on normalised images [B, C, H, W] it gives [B, D], the mean of the patch tokens;
    `sscxr.release.input_norm` says how to normalise grey levels 0..1.

    Args:
        path_or_url: a folder (a release, or a run's `encoder`), or an http or https address.
        key: file of the Ed25519 public key whose signature the release must have; None: not checked.

    Raises:
        SscxrError: one line that says what is wrong.
    """
    from sscxr import fetch, signing  # imported here: `import sscxr` stays light

    return fetch.load_encoder(path_or_url, key=signing.read_public(key) if key else None)
