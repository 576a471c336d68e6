"""How many images a site's update mixes, and the least that it may.

An update is a sum over images. Of one image it shows that image, whatever the recipe; of `schema.MIXED_IMAGES` and
more, an inversion finds nothing that is closer to them than to others (docs/privacy.md). The ranges hold what is
learned in one place too; what is here holds where an update leaves a site, fine-tuning included.
"""

import functools

from sscxr.config import Config
from sscxr.config.schema import MIXED_IMAGES


def problem(config: Config) -> str:
    """What a federation may not ask of a site, in one line; empty where it may.

    Pretraining's batches are held by the ranges; `sscxr finetune`, whose updates stay, may have smaller ones.
    """
    if not config.pretrains and config.finetune.batch_size < MIXED_IMAGES:
        return (
            f"finetune.batch_size={config.finetune.batch_size}: in a federation at least {MIXED_IMAGES}, or an "
            "update shows single images"
        )
    return ""


def least_mixed(config: Config, images: int, round_number: int | None = None) -> int:
    """How many distinct images a site's update mixes, at least, in the given round or in the worst of all rounds.

    Args:
        images: that the site trains on.
    """
    batch = config.learning.batch_size
    local, rounds = config.federation.local_epochs, config.federation.rounds
    if round_number is None:
        return _worst(images, batch, local, rounds)
    return _distinct(images, batch, local, round_number)


@functools.lru_cache(maxsize=64)  # asked at every message
def _worst(images: int, batch: int, local_epochs: float, rounds: int) -> int:
    return min(_distinct(images, batch, local_epochs, number) for number in range(rounds))


def _distinct(images: int, batch: int, local_epochs: float, round_number: int) -> int:
    """Images in a round's steps: those of one epoch are distinct, those of two may be the same."""
    # Imported here: who reads a join file should not wait for torch.
    from sscxr.training.batches import batches_per_epoch, steps_of_round

    per_epoch = batches_per_epoch(images, batch)
    steps = steps_of_round(images, batch, local_epochs, round_number)
    first, last = steps[0] // per_epoch, steps[-1] // per_epoch
    if first == last:
        longest = len(steps)
    elif last - first > 1:
        longest = per_epoch
    else:
        longest = max(last * per_epoch - steps[0], steps[-1] + 1 - last * per_epoch)
    return images if longest == per_epoch else longest * (images // per_epoch)
