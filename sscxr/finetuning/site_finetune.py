"""Fine-tuning at one site, a round at a time: the task, loss and rates of `sscxr finetune`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from sscxr import seeds
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.finetuning import KINDS, finetune, finetuned
from sscxr.training.batches import batches_of_round, batches_per_epoch, round_of, stretch_of_round
from sscxr.training.device import autocast
from sscxr.training.loop import HeldOut, Trained, train
from sscxr.training.parts import Parts
from sscxr.training.site_model import SiteModel


class SiteFineTuning(SiteModel):
    """A task, its model and its optimiser at one site; like `pretrain.SiteTraining`, with labels or masks."""

    def __init__(
        self,
        config: Config,
        device: torch.device,
        cache: Cache,
        rows: Rows,
        *,
        share_head: bool,
    ) -> None:
        """Build the model, its task and its optimiser.

        Args:
            rows: to train on.
            share_head: whether the head is averaged too.
        """
        self.config, self.device = config, device
        self.model = build_model(config).to(device)
        parts = parts_of(self.model, share_head=share_head)
        self.task = KINDS[config.run.stage].task(self.model, cache, config, device, rows)
        if config.finetune.frozen:
            finetune.freeze(parts.encoder)
        super().__init__(self.model, parts, finetune.optimiser(self.model, config.finetune), config)

    def train_round(
        self,
        rows: Rows,
        *,
        site: str,
        round_number: int,
        budget: float,
        on_step: Callable[[int, int, float], None] | None = None,
    ) -> Trained:
        """Train for one round's local epochs; arguments as in `pretrain.SiteTraining.train_round`."""
        settings, federation = self.config.finetune, self.config.federation
        place = (self.config.run.seed, self.config.run.stage, site, round_number)
        batch_size, steps = round_of(self.config, len(rows), round_number)
        stretch = stretch_of_round(steps, round_number, federation.rounds)
        self.begin_round(steps)
        with seeds.forked(*place, "drop-path"):
            return train(
                self.model,
                self.optimiser,
                self._batches(rows, site, batch_size, steps, seeds.generator(self.device, *place, "views")),
                lambda batch: finetune.loss_of(self.task, batch, frozen=settings.frozen),
                stretch=stretch,
                schedule=finetune.schedule(settings),
                clip=settings.clip,
                per_tensor=False,
                autocast=autocast(settings.amp, self.device),
                budget=budget,
                on_step=on_step,
                after_step=lambda progress: self.after_step(),
            )

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

    def _batches(
        self, rows: Rows, site: str, size: int, steps: range, source: torch.Generator
    ) -> Iterator[tuple[Any, Sequence[int]]]:
        seed = self.config.run.seed
        for batch in batches_of_round(rows, size, steps, seed=seed, site=site):
            yield self.task.batch(batch, source), batch.tolist()


def build_model(config: Config) -> nn.Module:
    """Build the stage's model with an untrained encoder, from the run's seed alone, so the same everywhere."""
    return finetuned.start(None, config)[0]


def parts_of(model: nn.Module, *, share_head: bool) -> Parts:
    """Return the model's encoder, and a classifier's head or a segmenter's decoder on top of it."""
    top = model.head if hasattr(model, "head") else model.decoder
    return Parts(cast(nn.Module, model.encoder), cast(nn.Module, top), share_head=share_head)
