"""Federated self-supervised learning on chest X-rays: the science. It opens a socket only to download a release.

    import sscxr
    encoder = sscxr.load_encoder("runs/demo/encoder")   # a timm ViT; an address is fetched
    cache = sscxr.open_cache("CACHE")                   # images, masks, an index
    run = sscxr.Run("runs/demo")                        # its tables: sites, rounds, probes, config, status

Importing it takes some tens of milliseconds: numpy, pandas and torch are imported when they are needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sscxr import _torchvision

if TYPE_CHECKING:
    from sscxr.api import Run, load_encoder
    from sscxr.data.cache.cache import open_cache

__version__ = "0.1.0"
__all__ = ["Run", "load_encoder", "open_cache"]

_torchvision.make_importable()
_LATER = {"Run": "sscxr.api", "load_encoder": "sscxr.api", "open_cache": "sscxr.data.cache.cache"}


def __getattr__(name: str) -> Any:
    """Import a name on first access (PEP 562)."""
    if name not in _LATER:
        raise AttributeError(f"module 'sscxr' has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_LATER[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER])
