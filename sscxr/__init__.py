"""Federated self-supervised learning on chest X-rays: the science, free of any network."""

from sscxr import _torchvision

__version__ = "0.1.0"

_torchvision.make_importable()
