"""A model at a site between two messages: its rounds, what the server averages, what stays, and the update."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sscxr import seeds
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.training import optim
from sscxr.training.alignment import Alignment
from sscxr.training.batches import batches_of_round, round_of, stretch_of_round
from sscxr.training.device import autocast
from sscxr.training.gradients import Gradients
from sscxr.training.loop import HeldOut, Stretch, Trained, train
from sscxr.training.moments import Moments
from sscxr.training.parts import Parts
from sscxr.training.private import PatientGradients, Privacy, sampled

MOST_AT_ONCE = 8  # images whose gradients are in memory together; more are not faster on a CPU


class Training(ABC):
    """Training at a site: a model of two parts with its optimiser.

    Attributes:
        config, device: the run's settings, and where the model is.
        cache: the site's images.
        parts: its encoder and its head.
        optimiser: of the model; or what keeps the gradients, if the server steps.
        place: names the training in the seeds of its randomness.
    """

    place: str

    def __init__(
        self,
        model: nn.Module,
        parts: Parts,
        optimiser: torch.optim.Optimizer,
        config: Config,
        device: torch.device,
        cache: Cache,
    ) -> None:
        settings = config.federation
        self.config, self.device, self.parts = config, device, parts
        self.optimiser = Gradients(parts) if settings.sends == "gradients" else optimiser
        self._model, self.cache = model, cache
        self._moments = Moments(config.moments, config.optimiser, parts, self.optimiser)
        self._alignment = Alignment(settings.align, parts)

    @property
    def patients(self) -> npt.NDArray[Any]:
        """Return the patient group of each row of the cache."""
        return self.cache.column("group")

    def shared(self) -> dict[str, Tensor]:
        """Return the present tensors to average, on the CPU: weights, and moments by `federation.moments`."""
        return self.parts.shared() | self._moments.shared()

    def load_shared(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors that the server sent; after `load_local`, whose moments they replace."""
        self.parts.load_shared(tensors)
        self._moments.load(tensors)

    def local(self) -> dict[str, Tensor]:
        """Return the tensors that stay at the site between rounds, on the CPU."""
        own = optim.moments(self.optimiser, self._model)
        return self.parts.local() | self._alignment.local() | own

    def load_local(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `local` returned after an earlier round."""
        self.parts.load_local(tensors)
        self._alignment.load_local(tensors)
        optim.restore_moments(self.optimiser, self._model, tensors)

    def update(self, received: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what a round adds to the tensors received, fp32; or their gradients, if the server steps."""
        if isinstance(self.optimiser, Gradients):
            return self.optimiser.of(received)
        after = self.shared()
        return {name: after[name].float() - received[name] for name in received}

    def train_round(
        self,
        rows: Rows,
        *,
        site: str,
        round_number: int,
        budget: float,
        privacy: Privacy | None = None,
        on_step: Callable[[int, int, float], None] | None = None,
    ) -> Trained:
        """Train for one round's local epochs.

        Args:
            rows: the site's training rows.
            site, round_number: seed the round's randomness, which does not depend on the attempt; but with
                differential privacy all of it is secret.
            budget: seconds for the round.
            privacy: train with differential privacy; the loss returned is then not private, and must not leave.
            on_step: as in `loop.train`.
        """
        settings, federation = self.config.learning, self.config.federation
        seed = self.config.run.seed if privacy is None else privacy.secret.seed()
        place = (seed, self.place, site, round_number)
        images = len(rows) if privacy is None else privacy.patients
        size, steps = round_of(self.config, images, round_number)
        stretch = stretch_of_round(steps, round_number, federation.rounds)
        views, corruption = (seeds.generator(self.device, *place, of) for of in ("views", "corrupt"))
        self.begin_round(steps)
        order = batches_of_round(
            rows, size, steps, seed=self.config.run.seed, site=site, sources=self.sources()
        )
        gradients = None
        if privacy is not None:
            order = sampled(rows, self.patients, privacy.rate(size), len(steps), privacy.most, privacy.secret)
            gradients = self._private(privacy, size, corruption)
        with seeds.forked(*place, "drop-path"):
            return train(
                self._model,
                self.optimiser,
                self.batches(order, rows, site, steps, stretch, views),
                lambda batch: self.loss(batch, corruption),
                stretch=stretch,
                schedule=optim.Schedule.of(settings),
                clip=math.inf if federation.sends == "gradients" else settings.clip,  # then the server clips
                per_tensor=self.config.pretrains and self.config.pretrain.clip_per_tensor,
                autocast=autocast(settings.amp, self.device),
                gradients=gradients,
                budget=budget,
                on_step=on_step,
                after_step=self.after_step,
            )

    def _private(
        self, privacy: Privacy, size: int, source: torch.Generator
    ) -> Callable[[Any, Sequence[int]], Tensor]:
        """Return what sets a batch's private gradients."""
        parts = self.config.pretrain.accumulate if self.config.pretrains else 1
        each = PatientGradients(
            self._model, self.loss_of, privacy, expected=size, at_once=min(MOST_AT_ONCE, -(-size // parts))
        )

        def gradients(batch: Any, rows: Sequence[int]) -> Tensor:
            inputs = self.draw_inputs(batch, source) if rows else ()
            copies = len(inputs[0]) // len(rows) if rows else 0
            return each(inputs, np.tile(self.patients[list(rows)], copies))

        return gradients

    def begin_round(self, steps: range) -> None:
        """Prepare for a round of these steps, counted from the run's first, after the average has been loaded."""
        self._moments.begin(steps.start)
        self._alignment.begin(len(steps))

    def sources(self) -> npt.NDArray[Any] | None:
        """Return each row's source, [rows of the cache], if an epoch shows one after another."""
        return None

    def after_step(self, progress: float) -> None:
        """Do what follows an optimiser's step, with the share of the run that is done, 0..1."""
        self._alignment.after_step()

    @abstractmethod
    def batches(
        self,
        order: Iterator[Rows],
        rows: Rows,
        site: str,
        steps: range,
        stretch: Stretch,
        source: torch.Generator,
    ) -> Iterator[tuple[Any, Sequence[int]]]:
        """Yield for each step of a round a batch for `loss`, and its rows.

        Args:
            order: the rows of each step; with differential privacy there may be none.
            rows: all of the site's training rows.
            source: draws the views, on the device.
        """

    @abstractmethod
    def loss(self, batch: Any, source: torch.Generator) -> Tensor | Iterator[Tensor]:
        """Return the loss of a batch, or parts that add up to it; see `loop.train`."""

    @abstractmethod
    def draw_inputs(self, batch: Any, source: torch.Generator) -> Sequence[Tensor]:
        """Return the inputs of `loss_of` after all draws, [count * B, ...] each: view v of image i at v * B + i."""

    @abstractmethod
    def loss_of(self, *inputs: Tensor) -> Tensor:
        """Return the loss of drawn inputs; of one image, if that is what they are of."""

    @abstractmethod
    def held_out(self, rows: Rows, *, site: str) -> HeldOut:
        """Measure the model on images that are never trained on."""
