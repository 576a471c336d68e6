"""Fine-tuning at one site, a round at a time: the task, loss and rates of `sscxr finetune`."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sscxr import seeds
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.finetuning import KINDS, finetune, finetuned
from sscxr.training.batches import batches_per_epoch
from sscxr.training.device import autocast
from sscxr.training.loop import HeldOut, Stretch
from sscxr.training.parts import Parts
from sscxr.training.site_model import Training


class SiteFineTuning(Training):
    """A task, its model and its optimiser at one site; like `pretrain.SiteTraining`, with labels or masks."""

    def __init__(
        self, config: Config, device: torch.device, cache: Cache, rows: Rows, *, share_head: bool
    ) -> None:
        """Build the model, its task on these training rows, and its optimiser."""
        self.place = config.run.stage
        self.model = build_model(config).to(device)
        parts = parts_of(self.model, share_head=share_head)
        self.task = KINDS[config.run.stage].task(self.model, cache, config, device, rows)
        if config.finetune.frozen:
            finetune.freeze(parts.encoder)
        adamw = finetune.optimiser(self.model, config.finetune)
        super().__init__(self.model, parts, adamw, config, device, cache)

    def loss(self, batch: Any, source: torch.Generator) -> Tensor:
        """Return the task's loss, with a frozen encoder in eval mode."""
        return finetune.loss_of(self.task, batch, frozen=self.config.finetune.frozen)

    @torch.no_grad()
    def held_out(self, rows: Rows, *, site: str) -> HeldOut:
        """Return the loss, on the same varied views every round, and the score on images never trained on."""
        self.model.eval()
        source = seeds.generator(self.device, self.config.run.seed, "held out", site)
        total = 0.0
        for batch in np.array_split(rows, batches_per_epoch(len(rows), self.config.finetune.batch_size)):
            with autocast(self.config.finetune.amp, self.device):
                total += float(self.task.loss(self.task.batch(batch, source))) * len(batch)
        return HeldOut(total / len(rows), self.task.score(rows))

    def batches(
        self,
        order: Iterator[Rows],
        rows: Rows,
        site: str,
        steps: range,
        stretch: Stretch,
        source: torch.Generator,
    ) -> Iterator[tuple[Any, Sequence[int]]]:
        """Yield the task's varied inputs and targets, and their rows."""
        for batch in order:
            yield (self.task.batch(batch, source) if len(batch) else ()), batch.tolist()

    def draw_inputs(self, batch: Any, source: torch.Generator) -> Sequence[Tensor]:
        """Return a batch as it is: inputs and targets."""
        return cast(Sequence[Tensor], batch)

    def loss_of(self, *inputs: Tensor) -> Tensor:
        """Return the task's loss of inputs and targets."""
        return finetune.loss_of(self.task, inputs, frozen=self.config.finetune.frozen)


def build_model(config: Config) -> nn.Module:
    """Build the stage's model with an untrained encoder, from the run's seed alone, so the same everywhere."""
    return finetuned.start(None, config)[0]


def parts_of(model: nn.Module, *, share_head: bool) -> Parts:
    """Return the model's encoder, and a classifier's head or a segmenter's decoder on top of it."""
    top = model.head if hasattr(model, "head") else model.decoder
    return Parts(cast(nn.Module, model.encoder), cast(nn.Module, top), share_head=share_head)
