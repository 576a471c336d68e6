"""What a self-supervised method provides: a method is one file of this package, and `__init__` lists it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from sscxr.config import Config


class Corruption(NamedTuple):
    """Corrupted images.

    Attributes:
        images: [B, C, H, W], equal to the clean ones wherever `mask` is False.
        mask: bool [B, 1, H, W], True where corrupted.
    """

    images: Tensor
    mask: Tensor


class Objective(nn.Module, ABC):
    """A method around an encoder.

    Attributes:
        encoder: a timm ViT; it is averaged over the sites and released.
        head: what is on top of it; it is averaged with `federation.share_head`, else it stays at the site.
    """

    encoder: nn.Module
    head: nn.Module

    @classmethod
    @abstractmethod
    def build(cls, encoder: nn.Module, config: Config) -> Self:
        """Return the method around an encoder, its head drawn from torch's global generator.

        Raises:
            ConfigError: settings that do not fit the encoder.
        """

    @abstractmethod
    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            images: clean views [B, C, H, W], normalised.
            generator: on the images' device; all of the method's randomness is drawn from it.
        """

    def parts(self, images: Tensor, generator: torch.Generator, count: int) -> Iterator[Tensor]:
        """Yield the loss in parts that add up to it, each of at most `1 / count` of the images.

        By default the loss is taken for a mean over the images.
        """
        for some in images.tensor_split(min(count, len(images))):
            yield cast(Tensor, self(some, generator)) * (len(some) / len(images))

    def after_step(self, progress: float) -> None:
        """Do what follows an optimiser's step, such as moving a teacher.

        Args:
            progress: the share of the run that is done, 0..1.
        """

    def private(self) -> dict[str, Tensor]:
        """Return what never leaves the site, beside the head: a teacher, a centre, a queue; by default nothing."""
        return {}

    def load_private(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `private` returned after an earlier round."""

    def compile_by(self, compiled: Callable[[Callable[[Tensor], Tensor]], Any]) -> None:
        """Have the costly function of a batch compiled; by default none is."""

    @property
    def depth(self) -> int:
        """How many blocks of the encoder a step runs through."""
        return len(cast(Any, self.encoder).blocks)

    @property
    def head_layers(self) -> int:
        """How many layers of the encoder's width the head has for each token."""
        return 0


class Pictured(Objective):
    """A method that reconstructs images, which the report shows."""

    @abstractmethod
    def corrupt(self, images: Tensor, generator: torch.Generator) -> Corruption:
        """Return normalised images [B, C, H, W] as the encoder gets them."""

    @abstractmethod
    def reconstruct(self, corrupted: Tensor) -> Tensor:
        """Return the clean images [B, C, H, W] that the method predicts from corrupted ones."""
