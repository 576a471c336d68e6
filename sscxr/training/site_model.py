"""A model at a site between two messages: what the server averages, what stays, and the update."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sscxr.config import Config
from sscxr.training import optim
from sscxr.training.alignment import Alignment
from sscxr.training.gradients import Gradients
from sscxr.training.moments import Moments
from sscxr.training.parts import Parts


class SiteModel:
    """A model of two parts with its optimiser.

    Attributes:
        parts: its encoder and its head.
        optimiser: of the model; or what keeps the gradients, if the server steps.
    """

    def __init__(
        self, model: nn.Module, parts: Parts, optimiser: torch.optim.Optimizer, config: Config
    ) -> None:
        settings = config.federation
        self.parts = parts
        self.optimiser = Gradients(parts) if settings.sends == "gradients" else optimiser
        self._model = model
        self._moments = Moments(config.moments, config.optimiser, parts, self.optimiser)
        self._alignment = Alignment(settings.align, parts)

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

    def begin_round(self, steps: range) -> None:
        """Prepare for a round of these steps, counted from the run's first, after the average has been loaded."""
        self._moments.begin(steps.start)
        self._alignment.begin(len(steps))

    def after_step(self) -> None:
        """Do what follows an optimiser's step."""
        self._alignment.after_step()

    def update(self, received: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what a round adds to the tensors received, fp32; or their gradients, if the server steps."""
        if isinstance(self.optimiser, Gradients):
            return self.optimiser.of(received)
        after = self.shared()
        return {name: after[name].float() - received[name] for name in received}
