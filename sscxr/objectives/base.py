"""The interface of a self-supervised method; each method is one file of this package, listed in `__init__`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from sscxr.config import Config, ConfigError, fields
from sscxr.runs import Words

S = TypeVar("S")


@dataclass(frozen=True)
class Views:
    """A group of views that a method takes of each image: random crops of one size.

    Attributes:
        count: views per image.
        size: px a side.
        area: smallest and largest area of a crop, as a share of the image's.
    """

    count: int
    size: int
    area: Sequence[float]


class Measured(NamedTuple):
    """Figures of a method on held-out images.

    Attributes:
        loss: a scalar, comparable between rounds.
        score: a second figure, which `Words.score` names; None: none.
    """

    loss: Tensor
    score: Tensor | None = None


class Objective(nn.Module, ABC):
    """A method around an encoder.

    Attributes:
        encoder: a timm ViT; it is averaged over the sites and released.
        head: the part on top of it; it is averaged with `federation.share_head`, else it stays at the site.
        views: the groups of views that the loss takes.
        pooling: how the features of a released encoder are pooled: "avg", the mean of the patch tokens, or
            "token", the class token.
        compares: whether the loss compares views, which may then be of two images of one patient.
    """

    pooling: ClassVar[str] = "avg"
    compares: ClassVar[bool] = False
    encoder: nn.Module
    head: nn.Module
    views: Sequence[Views]

    @classmethod
    @abstractmethod
    def settings(cls, config: Config) -> Any:
        """Return the method's own settings, an instance of its dataclass, checked; see `section`.

        Raises:
            ConfigError: a setting cannot be used.
        """

    @classmethod
    @abstractmethod
    def words(cls, config: Config) -> Words:
        """Return the names of the method, its loss and its score in reports and on cards."""

    @classmethod
    @abstractmethod
    def build(cls, encoder: nn.Module, config: Config) -> Self:
        """Return the method around an encoder, its head drawn from torch's global generator.

        Raises:
            ConfigError: the settings do not fit the encoder.
        """

    @classmethod
    def coupling(cls, config: Config) -> str:
        """Return why an image's gradient may depend on other images, as one line; empty: it depends on none.

        Differential privacy is refused to a method that couples images. One that does not returns "" here, and
        states its loss as `draw_inputs` and `loss_of` too.
        """
        return (
            f"{config.pretrain.objective} does not state that each image's loss depends on that image alone"
        )

    def draw_inputs(self, views: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the inputs of `loss_of` after all random draws, [count * B, ...] each; see `forward`."""
        raise NotImplementedError

    def loss_of(self, *inputs: Tensor) -> Tensor:
        """Return the loss of drawn inputs, a scalar, without further draws but those of the encoder's own."""
        raise NotImplementedError

    @abstractmethod
    def forward(self, views: Sequence[Tensor], generator: torch.Generator, progress: float) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            views: one tensor per group of `views`: [count * B, C, size, size], normalised; view v of image i is at
                v * B + i.
            generator: on the views' device; all of the method's randomness is drawn from it.
            progress: the share of the run that is done after this step, 0..1.
        """

    def parts(
        self, views: Sequence[Tensor], generator: torch.Generator, progress: float, count: int
    ) -> Iterator[Tensor]:
        """Yield the loss in parts that add up to it, each of at most `1 / count` of the images.

        By default the loss is assumed to be a mean over the images.
        """
        images = len(views[0]) // self.views[0].count
        groups = [
            group.view(wanted.count, images, *group.shape[1:]).tensor_split(min(count, images), dim=1)
            for group, wanted in zip(views, self.views, strict=True)
        ]
        for part in zip(*groups, strict=True):
            share = part[0].shape[1] / images
            yield cast(Tensor, self([one.flatten(0, 1) for one in part], generator, progress)) * share

    def held_out(self, images: Tensor, generator: torch.Generator) -> Measured:
        """Measure the method on whole images [B, C, H, W]; by default the loss as at the end of the run."""
        return Measured(self([images], generator, 1.0))

    def begin_round(self) -> None:
        """Prepare for a round after a new average has arrived, such as resetting a teacher."""

    def after_step(self, progress: float) -> None:
        """Update the method after an optimiser's step, such as moving a teacher.

        Args:
            progress: the share of the run that is done, 0..1.
        """

    def private(self) -> dict[str, Tensor]:
        """Return tensors besides the head that never leave the site, such as a teacher; by default none."""
        return {}

    def load_private(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `private` returned after an earlier round."""

    def compile_by(self, compiled: Callable[[Callable[..., Tensor]], Any]) -> None:
        """Compile the costly function of a batch with `compiled`; by default nothing."""

    @property
    def depth(self) -> int:
        """Return how many blocks of the encoder a step runs through."""
        return len(cast(Any, self.encoder).blocks)

    @property
    def tokens(self) -> int:
        """Return how many tokens of an image, over all views, a step keeps for its backward pass."""
        vit = cast(Any, self.encoder)
        patch = int(vit.patch_embed.patch_size[0])
        return sum(group.count * ((group.size // patch) ** 2 + vit.num_prefix_tokens) for group in self.views)

    @property
    def head_values(self) -> int:
        """Return how many numbers of an image, over all views, the head keeps for its backward pass."""
        return 0


class Pictured(Objective):
    """A method that reconstructs images, which the report shows."""

    @abstractmethod
    def pictures(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return normalised images [B, C, H, W] as the encoder gets them, and the method's reconstructions."""


class Reconstruction(Pictured):
    """A method that predicts the pixels of patches.

    Attributes:
        given: its settings.
        img_size, patch_size, grid: px a side of an image and of a patch, and patches a side.
        in_chans, width: channels of the image and of a token.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        img_size: int,
        patch_size: int,
        in_chans: int,
        settings: Any,
        views: Sequence[Views],
    ) -> None:
        super().__init__()
        self.encoder, self.given, self.views = encoder, settings, views
        self.img_size, self.patch_size, self.in_chans = img_size, patch_size, in_chans
        self.grid, self.width = img_size // patch_size, int(cast(Any, encoder).embed_dim)

    @classmethod
    def build(cls, encoder: nn.Module, config: Config) -> Self:
        """Return the method around an encoder, by its own section and the section `encoder`."""
        shape = config.encoder
        return cls(
            encoder=encoder,
            img_size=shape.img_size,
            patch_size=shape.patch_size,
            in_chans=shape.in_chans,
            settings=cls.settings(config),
            views=[Views(config.pretrain.views, shape.img_size, config.augment.crop_scale)],
        )

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Return images [B, C, H, W] from patches [B, N, C * P * P]."""
        grid, patch, chans = self.grid, self.patch_size, self.in_chans
        pixels = patches.view(-1, grid, grid, chans, patch, patch)
        return pixels.permute(0, 3, 1, 4, 2, 5).reshape(-1, chans, self.img_size, self.img_size)


def section(config: Config, schema: type[S]) -> S:
    """Return the section of the run's method as an instance of its dataclass.

    Raises:
        ConfigError: a value is out of its range.
    """
    name = config.pretrain.objective
    found = schema(**asdict(config.section(name)))
    problem = next(fields.problems(found, f"{name}."), "")
    if problem:
        raise ConfigError(problem)
    return found
