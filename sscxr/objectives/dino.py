"""Self-distillation without labels (DINO, arXiv 2104.14294): a student predicts a teacher's view of the image.

The teacher sees two large crops of an image, the student these and several small ones. Both describe a view by a
distribution over prototypes, and the student's has to match the teacher's for every pair of different views. The
teacher is the student's moving average. Its distributions are centred, so that not all views become one prototype,
and sharp, so that they do not become uniform.

Teacher and centre never leave the site; the projection head, with the prototypes, stays there too unless
`federation.share_head` is set. Ours: crops of at least a tenth of the image, as 5 % of a chest shows nothing; no
solarisation, and no colour.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sscxr.config import Config, ConfigError
from sscxr.config.fields import choice, number, pair
from sscxr.config.ranges import GRID
from sscxr.models.tokens import embed, encode
from sscxr.objectives.base import Measured, Objective, Views, section
from sscxr.objectives.teacher import Teacher, momentum_at
from sscxr.runs import Words

_HEAD_STD = 0.02  # of the truncated normal that the head's weights are drawn from (the released code)
_HELD_OUT_SIDE = 0.6  # of the image: the crops of a held-out image, one in each corner (ours)


@dataclass
class Settings:
    """The section `dino`."""

    local_views: int = number(0, 16)
    local_side: float = number(0.1, 1)
    global_area: list[float] = pair(0.05, 1)
    local_area: list[float] = pair(0.05, 1)
    prototypes: int = number(16, 2**17)
    hidden: int = number(16, 8192)
    bottleneck: int = number(16, 4096)
    student_temperature: float = number(0.01, 1)
    teacher_temperature: list[float] = pair(0.01, 1)
    temperature_warmup: float = number(0, 1)
    momentum: float = number(0, 1)
    centre_momentum: float = number(0, 1)
    freeze_prototypes: float = number(0, 1)
    teacher: str = choice("keep", "reset")


class DINO(Objective):
    """Self-distillation around an encoder; settings: section `dino`.

    Attributes:
        encoder: a timm ViT with a class token, the student's.
        head: from the class token to logits over the prototypes.
        teacher: copies of both.
        centre: [K], the moving average of the teacher's logits.
    """

    pooling: ClassVar[str] = "token"
    compares: ClassVar[bool] = True
    centre: Tensor

    def __init__(self, *, encoder: nn.Module, settings: Settings, img_size: int, local_size: int) -> None:
        """Wrap `encoder`.

        Args:
            local_size: px a side of the local views, in whole patches.
        """
        super().__init__()
        self.encoder, self.given = encoder, settings
        width = int(cast(Any, encoder).embed_dim)
        self.head = Head(width, settings.hidden, settings.bottleneck, settings.prototypes)
        self.teacher = Teacher(encoder, self.head)
        self.register_buffer("centre", torch.zeros(settings.prototypes))
        self._new = True  # the teacher and the centre: not yet begun, or restored
        # Means of the teacher's logits in this step, and of how many images.
        self._seen: list[tuple[Tensor, int]] = []
        self.views = [Views(2, img_size, settings.global_area)]
        if settings.local_views:
            self.views.append(Views(settings.local_views, local_size, settings.local_area))

    @classmethod
    def settings(cls, config: Config) -> Settings:
        """Return the section `dino`.

        Raises:
            ConfigError: a number of views in `pretrain.views`, where DINO's are in its own section.
        """
        if config.pretrain.views != 1:
            raise ConfigError(
                f"pretrain.views={config.pretrain.views}: DINO has two global views and dino.local_views local ones"
            )
        return section(config, Settings)

    @classmethod
    def coupling(cls, config: Config) -> str:
        """Return a line: the centre is a mean over images, and enters every image's loss."""
        return "DINO's centre is a mean over all images of the site; choose gmml or mae"

    @classmethod
    def words(cls, config: Config) -> Words:
        """Return the words of a distillation."""
        return Words(
            kind="Federated pretraining without labels",
            made="pretrained without labels by self-distillation (DINO)",
            loss="distillation loss",
            axis="loss (cross-entropy, nats)",
            meaning="Loss: cross-entropy of the student's prototypes and the teacher's over pairs of views; it may "
            "rise while the features improve. Teacher entropy: that of its mean distribution over images, as a "
            "share of the largest there is; near 0 the method has collapsed to one prototype.",
            score="teacher entropy",
        )

    @classmethod
    def build(cls, encoder: nn.Module, config: Config) -> Self:
        """Return DINO around an encoder, by the sections `dino` and `encoder`."""
        settings, shape = cls.settings(config), config.encoder
        grid = shape.img_size // shape.patch_size
        local = min(grid, max(GRID, round(settings.local_side * grid))) * shape.patch_size
        return cls(encoder=encoder, settings=settings, img_size=shape.img_size, local_size=local)

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, progress: float) -> Tensor:
        """Return the mean cross-entropy over all pairs of a teacher's and another view, nats."""
        images, student = len(views[0]) // 2, self._student(views, progress)
        with torch.no_grad():
            logits = self._teacher(views[0])
            if self.training:
                self._seen.append((logits.mean(dim=0), images))
            target = self._targets(logits, progress)
        return cross_entropy(target.view(2, images, -1), student.view(-1, images, student.shape[-1]))

    def _student(self, views: Sequence[Tensor], progress: float) -> Tensor:
        """Log-probabilities of the prototypes, [V * B, K]."""
        trains = progress >= self.given.freeze_prototypes
        logits = torch.cat([self.logits(self.embed(group), trains) for group in views])
        return functional.log_softmax(logits.float() / self.given.student_temperature, dim=-1)

    def _teacher(self, images: Tensor) -> Tensor:
        encoder, head = self.teacher.copies
        return cast(Tensor, head(encode(encoder, embed(encoder, images))[:, 0])).float()

    def _targets(self, logits: Tensor, progress: float) -> Tensor:
        """The teacher's probabilities, centred and sharpened."""
        low, high = self.given.teacher_temperature
        share = min(1.0, progress / self.given.temperature_warmup) if self.given.temperature_warmup else 1.0
        return functional.softmax((logits - self.centre) / (low + (high - low) * share), dim=-1)

    def embed(self, images: Tensor) -> Tensor:
        """The student's class token of each view, [B, D] of [B, C, H, W]."""
        return encode(self.encoder, embed(self.encoder, images))[:, 0]

    def logits(self, features: Tensor, prototypes_learn: bool) -> Tensor:
        """The student's logits, [B, K] of [B, D]."""
        return cast(Tensor, self.head(features, learn=prototypes_learn))

    def held_out(self, images: Tensor, generator: torch.Generator) -> Measured:
        """Return the loss of whole images and their four corners, and the entropy of the teacher's mean answer."""
        size, side = images.shape[-1], round(_HELD_OUT_SIDE * images.shape[-1])
        corners = [
            images[..., y : y + side, x : x + side] for y in (0, size - side) for x in (0, size - side)
        ]
        local = self.views[-1].size if len(self.views) > 1 else size
        small = functional.interpolate(
            torch.cat(corners), size=(local, local), mode="bilinear", antialias=True, align_corners=False
        )
        student = self._student([images, small], 1.0)
        target = self._targets(self._teacher(images), 1.0)
        loss = cross_entropy(target.unsqueeze(0), student.view(-1, *target.shape))
        mean = target.mean(dim=0)
        return Measured(loss, -torch.xlogy(mean, mean).sum() / math.log(len(mean)))

    def begin_round(self) -> None:
        """Begin the teacher as the student's equal; in later rounds keep it, or reset it to the new average."""
        if self._new:
            self.centre.zero_()
        if self._new or self.given.teacher == "reset":
            self.teacher.reset(self.encoder, self.head)
        self._new = False

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the centre and the teacher."""
        images = sum(count for _, count in self._seen)
        mean = torch.stack([logits * (count / images) for logits, count in self._seen]).sum(dim=0)
        self._seen.clear()
        self.centre.lerp_(mean, 1 - self.given.centre_momentum)
        self.teacher.follow(self.encoder, self.head, momentum=momentum_at(progress, self.given.momentum))

    def private(self) -> dict[str, Tensor]:
        """Return teacher and centre."""
        teacher = {
            f"teacher.{name}": tensor.cpu().clone() for name, tensor in self.teacher.state_dict().items()
        }
        return teacher | {"centre": self.centre.cpu().clone()}

    def load_private(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore teacher and centre; without them, both begin anew."""
        if tensors:
            own = {n.removeprefix("teacher."): t for n, t in tensors.items() if n.startswith("teacher.")}
            self.teacher.load_state_dict(own)
            self.centre.copy_(tensors["centre"])
            self._new = False

    def compile_by(self, compiled: Callable[[Callable[..., Tensor]], Any]) -> None:
        """Have `embed` compiled."""
        cast(Any, self).embed = compiled(self.embed)

    @property
    def head_values(self) -> int:
        """Of each view: two hidden layers with their GELU, the bottleneck, and logits with what softmax needs."""
        views = sum(group.count for group in self.views)
        return views * (4 * self.given.hidden + 2 * self.given.bottleneck + 4 * self.given.prototypes)


class Head(nn.Module):
    """An MLP of three layers, a bottleneck of unit length, and its cosine to each prototype."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=_HEAD_STD)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes, std=_HEAD_STD)

    def forward(self, features: Tensor, *, learn: bool = True) -> Tensor:
        """Return cosines [B, K] of features [B, D]; without `learn` the prototypes get no gradient."""
        prototypes = self.prototypes if learn else self.prototypes.detach()
        unit = functional.normalize(self.mlp(features).float(), dim=-1)
        # A cosine in bf16, divided by 0.04, is 0.05 off.
        with torch.autocast(unit.device.type, enabled=False):
            return functional.linear(unit, functional.normalize(prototypes, dim=-1))


def cross_entropy(target: Tensor, student: Tensor) -> Tensor:
    """The mean cross-entropy of each teacher's view with every other view of the same image.

    Args:
        target: [T, B, K], the teacher's probabilities.
        student: [V, B, K], the student's log-probabilities; its first T views are the teacher's.
    """
    # Not a matrix product: autocast would round it to bf16.
    pairs = torch.stack([-(view * student).sum(dim=-1).mean(dim=1) for view in target])
    others = ~torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return (pairs * others).sum() / others.sum()
