"""Group masked model learning (GMML, arXiv 2205.14986): corrupt groups of connected patches, reconstruct them.

An image is corrupted by rectangles, stamped until their union covers a drawn budget of its area. Their content
becomes noise, zeros, or that of another image at the same place ("alien"). The encoder sees the whole corrupted
image; a light head on the mean of several blocks' outputs predicts pixels; the loss is the mean absolute error
on the corrupted ones.

One choice per view: it is corrupted by noise or zeros, or by an alien, never by both, as the released code does.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from sscxr.config import Config, ConfigError
from sscxr.config.fields import choice, number, pair
from sscxr.models.encoder import patch_tokens
from sscxr.objectives.base import Reconstruction, section
from sscxr.runs import Words

_HEAD_STD = 0.02  # of the truncated normal that the head's weights are drawn from (GMML)


@dataclass
class Settings:
    """The section `gmml`."""

    kinds: list[str] = choice("noise", "zeros", "alien")
    drop_budget: list[float] = pair(0.05, 0.95)
    alien_budget: list[float] = pair(0.05, 0.95)
    max_block: float = number(0.05, 1)
    align: int = number(1, 512)
    centre_bias: bool = MISSING
    blocks: list[int] = number(1, 256)
    head_layers: int = number(0, 64)
    corrupted_only: bool = MISSING


class Corruption(NamedTuple):
    """Corrupted images.

    Attributes:
        images: [B, C, H, W], equal to the clean ones wherever `mask` is False.
        mask: bool [B, 1, H, W], True where corrupted.
    """

    images: Tensor
    mask: Tensor


def draw_rectangles(
    batch: int,
    count: int,
    *,
    size: int,
    align: int,
    max_block: float,
    centre_bias: bool,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw `count` rectangles per image on a grid of `align` px, sides uniform in `align .. max_block * size` px.

    Args:
        centre_bias: True: as published, top-left corners lie inside the image and rectangles are clipped at the
            bottom and right, so the centre is corrupted more than the corners. False (ours): rectangles hang
            over every edge, and every cell is as likely as any other.

    Returns:
        top and left, bottom and right edges in cells: two int64 [B, K, 2], the second exclusive.
    """
    device = generator.device
    grid = size // align
    shape = (batch, count, 2)  # the last axis: vertical, horizontal

    def uniform() -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    longest = int(max_block * size)
    side = align + (uniform() * (longest - align)).floor()  # px, in align .. longest - 1
    if centre_bias:
        start = (uniform() * (size - align)).floor().div(align, rounding_mode="floor")
        end = start + (torch.minimum(side, size - start * align) / align).round()
    else:
        cells = (side / align).round()
        start = (uniform() * (grid + cells - 1)).floor() - (cells - 1)
        end = start + cells
    return start.long(), end.long()


def cover(start: Tensor, end: Tensor, *, grid: int, budget: Tensor) -> tuple[Tensor, Tensor]:
    """Stamp rectangles in their order until their union reaches the budget.

    The union of an image's first k rectangles is a matrix product of its rows and columns, and grows with k, so
    the k that first reaches the budget is found by bisection, for the whole batch together.

    Args:
        start, end: int64 [B, K, 2], edges in cells, the second exclusive.
        budget: [B], cells to cover.

    Returns:
        mask: bool [B, grid, grid]; the number of stamped rectangles: int64 [B]. If all K together stay below the
        budget, all are stamped.
    """
    batch, count, _ = start.shape
    cells = torch.arange(grid, device=start.device)
    inside = (cells >= start.unsqueeze(-1)) & (cells < end.unsqueeze(-1))  # [B, K, 2, grid]
    # Zeros and ones, and sums that are only compared with zero: as exact in bf16, which is fast on a GPU.
    rows, columns = inside.to(torch.bfloat16 if start.is_cuda else torch.float32).unbind(dim=2)
    order = torch.arange(count, device=start.device)

    def union(stamped: Tensor) -> Tensor:
        kept = rows * (order < stamped.unsqueeze(1)).unsqueeze(-1)
        return torch.bmm(kept.transpose(1, 2), columns) > 0.5

    low = torch.zeros(batch, dtype=torch.long, device=start.device)
    high = torch.full_like(low, count)
    for _ in range(count.bit_length()):
        middle = (low + high) // 2
        enough = union(middle).flatten(1).sum(dim=1) >= budget
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, torch.minimum(middle + 1, high))
    return union(high), high


def rectangles_needed(*, size: int, align: int, max_block: float, budget: float) -> int:
    """Return how many rectangles to draw so that the budget is, for all practical purposes, always reached.

    Independent rectangles of mean area a leave exp(-k a) uncovered after k; four times that k bounds the draws,
    and with them the loop that the released code leaves unbounded (ours).
    """
    mean_side = (align + max_block * size) / 2 / size
    return math.ceil(4 * -math.log(1 - budget) / mean_side**2)


class GMML(Reconstruction):
    """Group masked model learning around an encoder.

    Attributes:
        encoder: a timm ViT; it is federated and released.
        head: predicts each patch's pixels from its token; stays at the site unless it is shared.
    """

    given: Settings

    def __init__(self, *, settings: Settings, **shape: Any) -> None:
        """Wrap an encoder; the head's initialisation draws from torch's global generator."""
        super().__init__(settings=settings, **shape)
        self.head = _reconstruction_head(self.width, self.in_chans * self.patch_size**2, settings.head_layers)
        self.budgets = [
            settings.alien_budget if kind == "alien" else settings.drop_budget for kind in settings.kinds
        ]
        self.rectangles = rectangles_needed(
            size=self.img_size,
            align=settings.align,
            max_block=settings.max_block,
            budget=max(high for _, high in self.budgets),
        )

    @classmethod
    def settings(cls, config: Config) -> Settings:
        """Return the section `gmml`.

        Raises:
            ConfigError: the blocks do not fit the image, or `blocks` or `kinds` is empty.
        """
        settings, size = section(config, Settings), config.encoder.img_size
        if size % settings.align:
            raise ConfigError(f"gmml.align={settings.align} does not divide encoder.img_size={size}")
        if settings.max_block * size <= settings.align:
            raise ConfigError(
                f"gmml.max_block={settings.max_block} of {size} px is not above gmml.align={settings.align} px"
            )
        if not settings.blocks:
            raise ConfigError("gmml.blocks is empty: name the encoder blocks whose outputs are averaged")
        if not settings.kinds:
            raise ConfigError("gmml.kinds is empty: name at least one kind of corruption")
        return settings

    @classmethod
    def words(cls, config: Config) -> Words:
        """Return the words of a reconstruction."""
        only = cls.settings(config).corrupted_only
        return Words(
            kind="Federated pretraining without labels",
            made="pretrained without labels by group masked model learning (GMML)",
            loss="reconstruction loss",
            axis="loss (mean absolute error)",
            meaning="Loss: mean absolute error of the reconstructed pixels, in units of the encoder's input (grey "
            "levels 0 to 1 divided by data.std). Lower is better.",
            pictures="It is trained on the corrupted parts only." if only else "",
        )

    @classmethod
    def build(cls, encoder: nn.Module, config: Config) -> Self:
        """Return GMML around an encoder, by the sections `gmml` and `encoder`.

        Raises:
            ConfigError: `gmml.blocks` names a block that the encoder does not have.
        """
        settings, depth = cls.settings(config), len(cast(Any, encoder).blocks)
        if not all(1 <= block <= depth for block in settings.blocks):
            raise ConfigError(f"gmml.blocks={settings.blocks}: the encoder has blocks 1 to {depth}")
        return super().build(encoder, config)

    @property
    def depth(self) -> int:
        """Return the last block whose output is averaged."""
        return max(self.given.blocks)

    @property
    def head_values(self) -> int:
        """Return the inputs and activations of the linear layers before the projection to pixels."""
        layers = (len(cast(nn.Sequential, self.head)) - 1) // 2
        return 2 * layers * self.tokens * self.width

    def compile_by(self, compiled: Callable[[Callable[..., Tensor]], Any]) -> None:
        """Compile `reconstruct`."""
        cast(Any, self).reconstruct = compiled(self.reconstruct)

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, progress: float) -> Tensor:
        """Return the mean absolute error, in units of the normalised image; see `Objective.forward`."""
        return self.loss_of(*self.draw_inputs(views, generator))

    @classmethod
    def coupling(cls, config: Config) -> str:
        """Return a line if parts of images are replaced by those of other images."""
        if "alien" not in cls.settings(config).kinds:
            return ""
        return (
            "gmml.kinds has alien, which copies parts of other patients' images into an image; set "
            "gmml.kinds=[noise] or [noise,zeros]"
        )

    def draw_inputs(self, views: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return corrupted and clean images, and the mask."""
        (images,) = views
        corruption = self.corrupt(images, generator)
        return corruption.images, images, corruption.mask

    def loss_of(self, *inputs: Tensor) -> Tensor:
        """Return the mean absolute error of the reconstructions."""
        corrupted, clean, mask = inputs
        return self.loss(self.reconstruct(corrupted), clean, mask)

    def parts(
        self, views: Sequence[Tensor], generator: torch.Generator, progress: float, count: int
    ) -> Iterator[Tensor]:
        """Yield the loss of `forward` in parts: the batch is corrupted whole, then encoded in `count` parts."""
        (images,) = views
        corruption = self.corrupt(images, generator)
        whole = corruption.mask.sum()
        cuts = (tensor.tensor_split(min(count, len(images))) for tensor in (*corruption, images))
        for corrupted, mask, clean in zip(*cuts, strict=True):
            share = mask.sum() / whole.clamp(min=1) if self.given.corrupted_only else len(clean) / len(images)
            yield self.loss(self.reconstruct(corrupted), clean, mask) * share

    def pictures(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images [B, C, H, W] corrupted and reconstructed."""
        corrupted = self.corrupt(images, generator).images
        return corrupted, self.reconstruct(corrupted)

    @torch.no_grad()
    def corrupt(self, images: Tensor, generator: torch.Generator) -> Corruption:
        """Corrupt each image by one kind, drawn at even odds."""
        batch, device, kinds = len(images), images.device, self.given.kinds
        kind = torch.randint(len(kinds), (batch,), generator=generator, device=device)
        if batch == 1 and "alien" in kinds:
            # No other image to copy from: noise instead.
            kind = torch.full_like(kind, -1)
        mask = self._mask(kind.clamp(min=0), generator)
        noise = torch.randn(images.shape, generator=generator, device=device, dtype=images.dtype)
        others = torch.rand(batch, generator=generator, device=device).mul(batch - 1).floor().long() + 1
        alien = images[(torch.arange(batch, device=device) + others) % batch]
        content = {"zeros": images.new_zeros(()), "alien": alien}
        replacement = noise
        for index, name in enumerate(kinds):
            if name != "noise":
                replacement = torch.where((kind == index).view(-1, 1, 1, 1), content[name], replacement)
        return Corruption(torch.where(mask, replacement, images), mask)

    def _mask(self, kind: Tensor, generator: torch.Generator) -> Tensor:
        """Return bool [B, 1, H, W]: the union of rectangles that covers a budget drawn by each image's kind."""
        share = torch.rand(len(kind), generator=generator, device=kind.device)
        # One `where` per kind, not a look-up in a table: copying a table to a GPU waits for the GPU.
        for index, (low, high) in enumerate(self.budgets):
            share = torch.where(kind == index, low + (high - low) * share, share)
        align = self.given.align
        grid = self.img_size // align
        start, end = draw_rectangles(
            len(kind),
            self.rectangles,
            size=self.img_size,
            align=align,
            max_block=self.given.max_block,
            centre_bias=self.given.centre_bias,
            generator=generator,
        )
        mask, _ = cover(start, end, grid=grid, budget=share * grid**2)
        return mask.repeat_interleave(align, 1).repeat_interleave(align, 2).unsqueeze(1)

    def reconstruct(self, corrupted: Tensor) -> Tensor:
        """Predict the clean images [B, C, H, W] from the corrupted ones."""
        return self.unpatchify(self.head(patch_tokens(self.encoder, corrupted, self.given.blocks)))

    def loss(self, prediction: Tensor, clean: Tensor, mask: Tensor) -> Tensor:
        """Return the mean absolute error over the corrupted pixels, or over all if `corrupted_only` is False."""
        error = (prediction.float() - clean).abs()
        if not self.given.corrupted_only:
            return error.mean()
        weight = mask.to(error.dtype)
        return (error * weight).sum() / (weight.sum() * clean.shape[1]).clamp(min=1)


def _reconstruction_head(embed_dim: int, pixels: int, layers: int) -> nn.Sequential:
    """Return Linear + GELU `layers` times, then the published transposed convolution as a linear map."""
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(embed_dim, embed_dim), nn.GELU()]
    modules.append(nn.Linear(embed_dim, pixels))
    for module in modules:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_HEAD_STD)
            nn.init.zeros_(module.bias)
    return nn.Sequential(*modules)
