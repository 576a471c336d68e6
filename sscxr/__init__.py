"""Federated self-supervised learning on chest X-rays: the science. It opens no socket but to download a release."""

from pathlib import Path
from typing import TYPE_CHECKING

from sscxr import _torchvision

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"

_torchvision.make_importable()


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
