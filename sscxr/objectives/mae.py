"""Masked autoencoder (MAE, arXiv 2111.06377): the encoder sees some patches, a light decoder predicts the others.

Patches are masked one by one, at random. The encoder gets the visible ones alone, with their positions; the
decoder gets the encoder's tokens, and a learned token with its position for each masked patch. The loss is the mean
squared error on masked patches, whose pixels may be normalised by their own mean and standard deviation.
Medical MAE (arXiv 2210.12843) masks 90 % of a chest X-ray.

Ours: the encoder's positions are timm's, learned; the decoder's are the published sines and cosines.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from omegaconf import MISSING
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sscxr.config import Config, ConfigError
from sscxr.config.fields import number
from sscxr.models.tokens import embed, encode
from sscxr.objectives.base import Reconstruction, section
from sscxr.runs import Words

_HEAD_WIDTH = 32  # of the decoder, channels per attention head (the released code: 512 in 16 heads)
_STD = 0.02  # of the mask token's normal


@dataclass
class Settings:
    """The section `mae`."""

    mask_ratio: float = number(0.1, 0.95)
    decoder_width: int = number(32, 2048)
    decoder_depth: int = number(1, 32)
    normalised: bool = MISSING


class MAE(Reconstruction):
    """A masked autoencoder around an encoder.

    Attributes:
        encoder: a timm ViT; it is federated and released.
        head: the decoder.
    """

    given: Settings

    def __init__(self, *, settings: Settings, **shape: Any) -> None:
        """Wrap an encoder; the decoder is drawn from torch's global generator."""
        super().__init__(settings=settings, **shape)
        self.visible = max(1, round(self.grid**2 * (1 - settings.mask_ratio)))
        size, pixels = (settings.decoder_width, settings.decoder_depth), self.in_chans * self.patch_size**2
        self.head = Decoder(self.width, *size, grid=self.grid, pixels=pixels)

    @classmethod
    def settings(cls, config: Config) -> Settings:
        """Return the section `mae`.

        Raises:
            ConfigError: the attention heads do not divide the decoder's width.
        """
        settings = section(config, Settings)
        if settings.decoder_width % _HEAD_WIDTH:
            raise ConfigError(
                f"mae.decoder_width={settings.decoder_width} is not a multiple of {_HEAD_WIDTH}"
            )
        return settings

    @classmethod
    def words(cls, config: Config) -> Words:
        """Return the words of a reconstruction."""
        normalised = cls.settings(config).normalised
        unit = "each patch normalised on its own" if normalised else "in units of the encoder's input"
        return Words(
            kind="Federated pretraining without labels",
            made="pretrained without labels as a masked autoencoder (MAE)",
            loss="reconstruction loss",
            axis="loss (mean squared error)",
            meaning=f"Loss: mean squared error of the masked patches' pixels, {unit}. Lower is better.",
            pictures="It predicts the masked patches only; the others are shown as they are."
            + (
                " Each patch has its own true mean and contrast, which are not predicted."
                if normalised
                else ""
            ),
        )

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, progress: float) -> Tensor:
        """Return the mean squared error on masked patches."""
        return self.loss_of(*self.draw_inputs(views, generator))

    @classmethod
    def coupling(cls, config: Config) -> str:
        """Return "": each image is masked and predicted on its own."""
        return ""

    def draw_inputs(self, views: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return images, and the indices of their visible and masked patches."""
        (images,) = views
        return images, *self.draw(len(images), generator)

    def loss_of(self, *inputs: Tensor) -> Tensor:
        """Return the mean squared error on masked patches."""
        images, visible, masked = inputs
        target = _at(self.target(images), masked)
        predicted = _at(self.predict(images, visible, masked), masked)
        return nn.functional.mse_loss(predicted.float(), target)

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw which patches are seen: indices [B, visible], and the masked ones [B, N - visible], both rising."""
        noise = torch.rand(batch, self.grid**2, generator=generator, device=generator.device)
        order = noise.argsort(dim=1)
        return order[:, : self.visible].sort(dim=1).values, order[:, self.visible :].sort(dim=1).values

    def predict(self, images: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Return each patch's pixels, [B, N, pixels], from the visible patches of images [B, C, H, W].

        Args:
            visible, masked: indices of patches, [B, visible] and [B, N - visible].
        """
        tokens = embed(self.encoder, images)
        prefix = tokens.shape[1] - self.grid**2
        kept = torch.cat([tokens[:, :prefix], _at(tokens[:, prefix:], visible)], dim=1)
        seen = encode(self.encoder, kept)
        places = torch.cat([visible, masked], dim=1).argsort(dim=1)
        return cast(Tensor, self.head(seen, places, visible.shape[1]))

    def target(self, images: Tensor) -> Tensor:
        """Return each patch's target: its pixels [B, N, pixels], normalised if that is set."""
        patches = self.patchify(images)
        if not self.given.normalised:
            return patches
        mean, std = _moments(patches)
        return (patches - mean) / std

    def patchify(self, images: Tensor) -> Tensor:
        """Return patches [B, N, C * P * P] of images [B, C, H, W]."""
        grid, patch = self.grid, self.patch_size
        cut = images.view(len(images), self.in_chans, grid, patch, grid, patch)
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def pictures(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images [B, C, H, W] with masked patches at 0, and with predictions in their place."""
        visible, masked = self.draw(len(images), generator)
        patches = self.patchify(images)
        predicted = self.predict(images, visible, masked).float()
        if self.given.normalised:
            mean, std = _moments(patches)
            predicted = predicted * std + mean
        hidden = torch.ones(patches.shape[:2], dtype=torch.bool, device=images.device)
        hidden = hidden.scatter(1, visible, False).unsqueeze(-1)
        return (
            self.unpatchify(patches.masked_fill(hidden, 0.0)),
            self.unpatchify(torch.where(hidden, predicted, patches)),
        )

    def compile_by(self, compiled: Callable[[Callable[..., Tensor]], Any]) -> None:
        """Compile `predict`."""
        cast(Any, self).predict = compiled(self.predict)

    @property
    def tokens(self) -> int:
        """Return the number of visible patches and prefix tokens."""
        vit = cast(Any, self.encoder)
        return sum(group.count for group in self.views) * (self.visible + int(vit.num_prefix_tokens))

    @property
    def head_values(self) -> int:
        """Return the numbers of the decoder's blocks, 18 a token and channel (`stages/memory.py`), and pixels."""
        tokens = sum(group.count for group in self.views) * (self.grid**2 + 1)
        pixels = self.in_chans * self.patch_size**2
        return tokens * (18 * self.given.decoder_depth * self.given.decoder_width + 3 * pixels)


class Decoder(nn.Module):
    """A light transformer from the encoder's tokens to every patch's pixels."""

    positions: Tensor

    def __init__(self, encoder_width: int, width: int, depth: int, *, grid: int, pixels: int) -> None:
        super().__init__()
        self.patches = grid**2
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(
            *(Block(width, num_heads=width // _HEAD_WIDTH, qkv_bias=True) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, pixels)
        self.register_buffer("positions", sines(grid, width).to(self.mask_token.device))
        nn.init.normal_(self.mask_token, std=_STD)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, seen: Tensor, places: Tensor, visible: int) -> Tensor:
        """Return the pixels of all patches, [B, N, pixels].

        Args:
            seen: the encoder's tokens [B, P + visible, D], prefix first.
            places: where each patch is in the list of the visible and then the masked ones: indices [B, N].
        """
        tokens = self.embed(seen)
        prefix = tokens.shape[1] - visible
        masked = self.mask_token.to(tokens.dtype).expand(len(tokens), self.patches - visible, -1)
        patches = _at(torch.cat([tokens[:, prefix:], masked], dim=1), places) + self.positions
        decoded = self.norm(self.blocks(torch.cat([tokens[:, :prefix], patches], dim=1)))
        return cast(Tensor, self.project(decoded[:, prefix:]))


def sines(grid: int, width: int) -> Tensor:
    """Return a square grid's positions, [1, grid * grid, width]: half the channels for rows, half for columns."""
    rates = 10_000.0 ** -(torch.arange(width // 4, device="cpu").double() / (width // 4))
    angles = torch.arange(grid, device="cpu").double().unsqueeze(1) * rates
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid, width / 2]
    rows, columns = line.unsqueeze(1).expand(-1, grid, -1), line.unsqueeze(0).expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1).unsqueeze(0).float()


def _at(tokens: Tensor, indices: Tensor) -> Tensor:
    """Return tokens [B, M, D] at indices [B, M] of [B, N, D]."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def _moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch, [B, N, 1]."""
    mean = patches.mean(dim=-1, keepdim=True)
    return mean, (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
