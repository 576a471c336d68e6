"""Training with differential privacy for patients (DP-SGD, Abadi et al., arXiv 1607.00133, algorithm 1).

The guarantee is for adding or removing one patient with all of their images. In each step every patient is drawn
with the same probability, independently of the others (Poisson sampling). A patient's gradient is the mean of those
of their images, and is scaled down to the norm `clip`. To the sum over the patients, noise of standard deviation
`noise` x `clip` is added, and the result is divided by the expected number of patients, a public figure. All that
follows from these gradients (weights, moments, the head) is as private as they are.

An image's gradient must depend on that image alone. So its crop, corruption and depth are drawn from secret seeds:
from a known one they would follow from who else was drawn, since each takes the generator's next numbers. Methods
whose loss couples the images of a batch are refused (`Stage.coupling`), and so is BatchNorm.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from sscxr.data.rows import Rows
from sscxr.training.secret import Secret

_SLACK = 1e-5  # of a clipped norm: rounding never makes it larger than the bound


@dataclass(frozen=True)
class Privacy:
    """How a site trains with differential privacy.

    Attributes:
        noise: standard deviation of the noise, in units of `clip`.
        clip: the largest L2 norm of a patient's gradient.
        patients: the number of patients that the site has made public: it sets the probability that a patient is
            drawn, and the site's weight. It need not be exact, and does not change with a patient.
        most: images of a patient in a step, at most.
        secret: where sampling and noise come from.
    """

    noise: float
    clip: float
    patients: int
    most: int
    secret: Secret = field(default_factory=Secret)

    def rate(self, expected: int) -> float:
        """Return the probability that a patient is drawn for a step of an expected number of patients."""
        return min(1.0, expected / self.patients)


def sampled(
    rows: Rows, groups: npt.NDArray[Any], rate: float, steps: int, most: int, secret: Secret
) -> Iterator[Rows]:
    """Yield the rows of each step, which may be none: those of the drawn patients, at most `most` of each.

    Args:
        groups: the patient of each row of the cache.
        rate: the probability of each patient.
    """
    rows = np.unique(rows)  # a repeated row would make one patient's part depend on others
    patients, of_row = np.unique(groups[rows], return_inverse=True)
    for _ in range(steps):
        drawn = (secret.uniform(len(patients)) < rate)[of_row]
        found, owner = rows[drawn], of_row[drawn]
        order = np.lexsort(
            (secret.uniform(len(found)), owner)
        )  # by patient, each one's images in a random order
        found, owner = found[order], owner[order]
        place = np.arange(len(found)) - np.searchsorted(owner, owner)
        yield found[place < most]


class _Alone(nn.Module):
    """A loss as the output of a module that has the model's parameters, for `functional_call`."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.loss(*inputs)


class PatientGradients:
    """Puts a noisy mean of clipped gradients, one a patient, in the place of a batch's gradient."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        privacy: Privacy,
        *,
        expected: int,
        at_once: int,
    ) -> None:
        """Prepare a model.

        Args:
            loss: returns the loss of a batch of one image, a scalar; its inputs are tensors [1, ...].
            expected: the public divisor, patients a step.
            at_once: images whose gradients are in memory together; a patient's are, whatever this is.
        """
        coupled = next(
            (one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)), None
        )
        if coupled is not None:
            raise ValueError(f"{type(coupled).__name__} couples the images of a batch")
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                cast(Any, module).fused_attn = False  # on a CPU, torch's has no rule for single gradients
        self._alone, self._privacy = _Alone(model, loss), privacy
        self._expected, self._at_once = expected, at_once
        self._named = {name: one for name, one in self._alone.named_parameters() if one.requires_grad}
        self._each = vmap(grad_and_value(self._loss), in_dims=(None, 0), randomness="different")

    def __call__(self, inputs: Sequence[Tensor], owners: npt.NDArray[Any]) -> Tensor:
        """Set the parameters' gradients, and return the images' mean loss, which is not private: it must not leave.

        Args:
            inputs: of `loss`, [N, ...] each.
            owners: [N], the patient of each image; all in `inputs` of one patient are joined.
        """
        total = {name: torch.zeros_like(one, dtype=torch.float32) for name, one in self._named.items()}
        losses = [self._add(total, inputs, owners, part) for part in _parts(owners, self._at_once)]
        noise = self._privacy.noise * self._privacy.clip
        for name, parameter in self._named.items():
            drawn = self._privacy.secret.normal(parameter.numel()).mul_(noise).view(parameter.shape)
            noisy = total[name] + drawn.to(parameter.device, torch.float32)
            parameter.grad = noisy.div_(self._expected).to(parameter.dtype)
        device = next(iter(total.values())).device
        return torch.cat(losses).mean().nan_to_num() if losses else torch.zeros((), device=device)

    def _loss(self, parameters: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        alone = tuple(one.unsqueeze(0) for one in inputs)
        return cast(Tensor, functional_call(self._alone, parameters, alone))

    def _add(
        self,
        total: dict[str, Tensor],
        inputs: Sequence[Tensor],
        owners: npt.NDArray[Any],
        part: npt.NDArray[np.int64],
    ) -> Tensor:
        """Add the clipped gradients of some images, of whole patients, and return the images' losses."""
        chosen = torch.from_numpy(part).to(inputs[0].device)
        current = {name: one.detach() for name, one in self._named.items()}
        gradients, losses = self._each(current, tuple(one[chosen] for one in inputs))
        _, of_image, counts = np.unique(owners[part], return_inverse=True, return_counts=True)
        if len(counts) < len(part):
            gradients = _joined(gradients, of_image, counts)
        flat = {name: one.flatten(1).float() for name, one in gradients.items()}
        each = [torch.linalg.vector_norm(one, dim=1) for one in flat.values()]
        norms = torch.linalg.vector_norm(torch.stack(each), dim=0)
        factors = (self._privacy.clip * (1 - _SLACK) / norms).clamp(max=1.0)
        # A patient whose gradient is not finite adds nothing: a failure would show that this patient is here.
        good = norms.isfinite()
        if not good.all():
            factors, flat = factors[good], {name: one[good] for name, one in flat.items()}
        for name, one in flat.items():
            total[name] += (factors @ one).view(total[name].shape)
        return cast(Tensor, losses).detach()


def _parts(owners: npt.NDArray[Any], most: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield places of images, those of a patient together, in parts of at most `most` or of one patient."""
    _, of_image, counts = np.unique(owners, return_inverse=True, return_counts=True)
    order = np.argsort(of_image, kind="stable")
    begin = end = 0
    for count in counts.tolist():
        if end > begin and end + count - begin > most:
            yield order[begin:end]
            begin = end
        end += count
    if end > begin:
        yield order[begin:end]


def _joined(
    gradients: dict[str, Tensor], of_image: npt.NDArray[Any], counts: npt.NDArray[Any]
) -> dict[str, Tensor]:
    """Return each patient's mean of their images' gradients."""
    joined = {}
    for name, gradient in gradients.items():
        where = torch.from_numpy(of_image).to(gradient.device)
        share = torch.from_numpy(1.0 / counts).to(gradient)[where]
        weighted = gradient.flatten(1) * share.unsqueeze(1)
        empty = torch.zeros(len(counts), weighted.shape[1], device=gradient.device, dtype=gradient.dtype)
        joined[name] = empty.index_add_(0, where, weighted)
    return joined
