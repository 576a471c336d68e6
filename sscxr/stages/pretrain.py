"""Self-supervised pretraining on one site's images: its rounds, and its held-out figures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from sscxr import seeds
from sscxr.config import Config, ConfigError
from sscxr.data import augment
from sscxr.data.cache.cache import Cache
from sscxr.data.feed import feed
from sscxr.data.rows import Rows
from sscxr.models import encoder as encoders
from sscxr.objectives import OBJECTIVES
from sscxr.objectives.base import Objective, Views
from sscxr.runs import Words
from sscxr.stages.base import Stage
from sscxr.training import compiled, optimisers
from sscxr.training.batches import batches_per_epoch
from sscxr.training.device import autocast
from sscxr.training.loop import HeldOut, Stretch
from sscxr.training.parts import Parts
from sscxr.training.site_model import Training

_PRIVATE = "private."  # prefix, in the site's state, of a method's private tensors


def build_encoder(config: Config) -> VisionTransformer:
    """Build the encoder from the run's seed alone, so the same everywhere; `Stage.start` loads a checkpoint."""
    settings = config.encoder
    with seeds.forked(config.run.seed, "encoder"):
        args = encoders.args_of(settings)
        pooling = method(config).pooling
        return encoders.build(settings.name, **args, drop_path=settings.drop_path, pooling=pooling)


def method(config: Config) -> type[Objective]:
    """Return the class that `pretrain.objective` names.

    Raises:
        ConfigError: there is no method of that name.
    """
    known = OBJECTIVES.get(config.pretrain.objective)
    if known is None:
        there = ", ".join(OBJECTIVES)
        raise ConfigError(f"pretrain.objective={config.pretrain.objective!r} is none of {there}")
    return known


def build_objective(config: Config) -> Objective:
    """Build the objective around a fresh encoder, from the run's seed alone, so the same everywhere."""
    encoder = build_encoder(config)
    with seeds.forked(config.run.seed, "head"):
        return method(config).build(encoder, config)


def blank_objective(config: Config, device: torch.device) -> Objective:
    """Build the objective with uninitialised weights: drawing them takes seconds for a large ViT."""
    with torch.device("meta"):
        objective = build_objective(config)
    stored = objective.state_dict().keys()
    left_out = [name for name, _ in objective.named_buffers() if name not in stored]
    if left_out:  # no later loading would fill these
        return build_objective(config).to(device)
    return objective.to_empty(device=device)


class Pretraining(Stage):
    """Pretraining without labels; only the encoder is averaged and released."""

    averages_head = False

    def __init__(self, config: Config) -> None:
        """Check the method's own settings.

        Raises:
            ConfigError: the method is unknown, or one of its settings cannot be used.
        """
        super().__init__(config)
        self.method = method(config)
        self.method.settings(config)
        if config.pretrain.positives == "patient" and not self.method.compares:
            raise ConfigError(
                f"pretrain.positives=patient: {config.pretrain.objective} does not compare views; set it to image"
            )

    @property
    def pooling(self) -> str:
        """Return the method's pooling."""
        return self.method.pooling

    @property
    def coupling(self) -> str:
        """Return the method's."""
        return self.method.coupling(self.config)

    @property
    def words(self) -> Words:
        """Return the method's words."""
        return self.method.words(self.config)

    @property
    def learns(self) -> str:
        """Return the method's name."""
        return f"an encoder without labels ({self.config.pretrain.objective})"

    def encoder_args(self) -> dict[str, Any]:
        """Return the encoder's arguments as the section `encoder` has them."""
        return encoders.args_of(self.config.encoder)

    def parts(self) -> Parts:
        """Return the encoder and the objective's head."""
        objective = build_objective(self.config)
        return Parts(objective.encoder, objective.head, share_head=self.shares_head)

    def training(
        self, device: torch.device, cache: Cache, rows: Rows, *, blank: bool = False
    ) -> "SiteTraining":
        """Return the objective's training; it needs no rows."""
        return SiteTraining(self.config, device, cache, share_head=self.shares_head, blank=blank)

    def usable(self, cache: Cache, rows: Rows) -> Rows:
        """Return all rows."""
        return rows

    def tellable(self, cache: Cache, rows: Rows, minimum: int) -> bool:
        """Return True: a mean loss does not depend on a class."""
        return True


STAGE = Pretraining


class SiteTraining(Training):
    """An objective and its optimiser at one site: loads a round's start, trains it, and returns both parts.

    Parts that are not averaged, and the optimiser's moments, stay at the site.
    """

    place = "train"

    def __init__(
        self,
        config: Config,
        device: torch.device,
        cache: Cache,
        *,
        share_head: bool = False,
        blank: bool = False,
    ) -> None:
        """Build the objective and its optimiser.

        Args:
            share_head: whether the head is averaged too.
            blank: leave the weights unset, because `parts` and `load_local` will fill in every weight and moment.
        """
        self.images = cache.images
        self.objective = blank_objective(config, device) if blank else build_objective(config).to(device)
        parts = Parts(self.objective.encoder, self.objective.head, share_head=share_head)
        # Gradients of single images are taken by a transform that can do neither.
        plain = bool(config.privacy.noise)
        if compiled.wanted(config.run.compile, device) and not plain:
            self.objective.compile_by(compiled.compiled)
        if config.pretrain.checkpointing and not plain:
            cast(Any, self.objective.encoder).set_grad_checkpointing(True)
        optimiser = optimisers.build(self.objective, config.pretrain)
        super().__init__(self.objective, parts, optimiser, config, device, cache)

    def load_local(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `local` returned after an earlier round."""
        super().load_local(tensors)
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(_PRIVATE)}
        self.objective.load_private({name.removeprefix(_PRIVATE): own[name] for name in own})

    def local(self) -> dict[str, Tensor]:
        """Return the tensors that stay at the site between rounds, on the CPU."""
        private = {_PRIVATE + name: tensor for name, tensor in self.objective.private().items()}
        return super().local() | private

    def begin_round(self, steps: range) -> None:
        """Prepare the method and the moments for a round."""
        self.objective.begin_round()
        super().begin_round(steps)

    def sources(self) -> npt.NDArray[Any] | None:
        """Return each row's source if an epoch shows one source after another."""
        return self.cache.index["source"].to_numpy(str) if self.config.pretrain.order == "sources" else None

    def after_step(self, progress: float) -> None:
        """Align the weights, then let the method follow them."""
        super().after_step(progress)
        self.objective.after_step(progress)

    def batches(
        self,
        order: Iterator[Rows],
        rows: Rows,
        site: str,
        steps: range,
        stretch: Stretch,
        source: torch.Generator,
    ) -> Iterator[tuple[tuple[list[Tensor], float], Sequence[int]]]:
        """Yield each step's groups of views with the share of the run done after it, and the rows."""
        settings, seed = self.config.pretrain, self.config.run.seed
        sources = 1
        if settings.positives == "patient":
            sources, groups = 2, self.cache.index["group"].to_numpy()
            draws = np.random.default_rng(seeds.derive(seed, "positives", site, steps.start))
            order = (np.concatenate([batch, positives(batch, rows, groups, draws)]) for batch in order)
        for step, (pixels, batch) in enumerate(feed(self.images, order, self.device)):
            images = pixels.tensor_split(sources)
            made = [
                views(
                    torch.cat([images[view % sources] for view in range(group.count)]),
                    self.config,
                    group,
                    source,
                )
                for group in self.objective.views
            ]
            yield (made, stretch.progress(step)), batch[: len(images[0])].tolist()

    def loss(self, batch: tuple[list[Tensor], float], source: torch.Generator) -> Tensor | Iterator[Tensor]:
        """Return the loss of a batch of views, in parts if gradients are accumulated over them."""
        (groups, progress), count = batch, self.config.pretrain.accumulate
        if count > 1:
            return self.objective.parts(groups, source, progress, count)
        return cast(Tensor, self.objective(groups, source, progress))

    def draw_inputs(self, batch: tuple[list[Tensor], float], source: torch.Generator) -> Sequence[Tensor]:
        """Return what the objective draws of a batch of views."""
        return self.objective.draw_inputs(batch[0], source)

    def loss_of(self, *inputs: Tensor) -> Tensor:
        """Return the objective's loss of drawn inputs."""
        return self.objective.loss_of(*inputs)

    @torch.no_grad()
    def held_out(self, rows: Rows, *, site: str) -> HeldOut:
        """Return the objective's loss on whole images never trained on, under the same corruption every round."""
        self.objective.eval()
        source = seeds.generator(self.device, self.config.run.seed, "held out", site)
        batches = np.array_split(rows, batches_per_epoch(len(rows), self.config.pretrain.batch_size))
        losses, scores = [], []
        for pixels, _ in feed(self.images, batches, self.device):
            clean = whole(pixels, self.config)
            with autocast(self.config.pretrain.amp, self.device):
                found = self.objective.held_out(clean, source)
            losses.append(found.loss)
            scores.append(torch.full_like(found.loss, math.nan) if found.score is None else found.score)
        # Only here the host waits for the device.
        return HeldOut(*(_mean(torch.stack(each).tolist(), batches) for each in (losses, scores)))


def _mean(values: Sequence[float], batches: Sequence[Rows]) -> float:
    """Return the mean over images of figures that are means over batches."""
    total = math.fsum(value * len(batch) for value, batch in zip(values, batches, strict=True))
    return total / sum(map(len, batches))


def positives(batch: Rows, rows: Rows, groups: npt.NDArray[Any], draws: np.random.Generator) -> Rows:
    """Return for each row of a batch another row of the same patient group among `rows`, or itself if none."""
    found = []
    for row in batch:
        others = rows[(groups[rows] == groups[row]) & (rows != row)]
        found.append(others[draws.integers(len(others))] if len(others) else row)
    return np.asarray(found, dtype=batch.dtype)


def views(pixels: Tensor, config: Config, group: Views, generator: torch.Generator) -> Tensor:
    """Return random views [B, 1, H, W] of cached images uint8 [B, S, S], normalised."""
    settings = config.augment
    return augment.views(
        pixels,
        out=group.size,
        crop_scale=group.area,
        crop_ratio=settings.crop_ratio,
        flip=settings.flip,
        brightness=settings.brightness,
        contrast=settings.contrast,
        blur=settings.blur,
        mean=config.data.mean,
        std=config.data.std,
        generator=generator,
    )


def whole(pixels: Tensor, config: Config) -> Tensor:
    """Return whole images [B, 1, H, W] from cached ones uint8 [B, S, S], normalised."""
    return augment.whole(pixels, out=config.encoder.img_size, mean=config.data.mean, std=config.data.std)
