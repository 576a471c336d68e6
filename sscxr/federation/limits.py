"""How far one site's update may reach, relative to its steps and rates; see `server.bounds`.

The server applies it to each update; in a secure sum, where it sees none, each site does so to its own.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from sscxr.config import Config
from sscxr.training import batches
from sscxr.training.optim import Schedule

_RATES = 64  # at most so many of a round's steps are sampled for their rates
_ROOTS = 16  # weights are whole numbers: roots are counted in sixteenths


@dataclass(frozen=True)
class Pace:
    """The steps of a site in one round, and their highest learning rate; 1 and 1 for gradients.

    AdamW's update is the sum of `steps` moves of the rate's size that partly cancel, and so grows with
    sqrt(steps) x rate.
    """

    steps: int
    rate: float

    @staticmethod
    def of(config: Config, images: int, round_number: int) -> "Pace":
        """Return the pace of a site of so many images."""
        if config.federation.sends == "gradients":
            return Pace(1, 1.0)
        schedule = Schedule.of(config.learning)
        _, steps = batches.round_of(config, images, round_number)
        stretch = batches.stretch_of_round(steps, round_number, config.federation.rounds)
        places = range(0, len(steps), -(-len(steps) // _RATES))
        rates = [schedule.at(stretch.progress(step))[0] for step in places]
        # A schedule may end at a rate of 0, and a round of one step is at the end of its stretch.
        return Pace(len(steps), max(*rates, schedule.lr * 1e-6))

    def relative(self, norm: float) -> float:
        """Return an update's norm per sqrt(steps) and rate, for comparison between sites and rounds."""
        return norm / (math.sqrt(self.steps) * self.rate)

    def most(self, clip: float, usual: float, values: int) -> float:
        """Return the largest L2 norm of an update that is not clipped.

        Args:
            clip: `federation.clip_updates`; 0: infinite.
            usual: of earlier rounds, as `relative` has it; 0: none yet. AdamW hardly moves a value by more than the
                rate in a step.
            values: how many weights an update has.
        """
        if not clip:
            return math.inf
        if not usual:
            return math.sqrt(values) * self.steps * self.rate
        return clip * usual * math.sqrt(self.steps) * self.rate


def weight_of(weights: str, images: int) -> int:
    """Return the weight in the average of a site with so many images that count, by `federation.weights`."""
    return {"images": images, "root": round(_ROOTS * math.sqrt(images)), "equal": 1}[weights]


def clip(update: dict[str, Tensor], norm: float, most: float) -> float:
    """Scale an update of this norm down to at most `most`, in place, and return its new norm."""
    if norm <= most:
        return norm
    for tensor in update.values():
        tensor.mul_(most / norm)
    return most
