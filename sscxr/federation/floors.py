"""Lower bounds on how many images a site's update mixes, and on how many sites a secure sum does.

An update is a sum over images. Of one image it shows that image, whatever the recipe; of `schema.MIXED_IMAGES` and
more, an inversion finds nothing that is closer to them than to others (docs/privacy.md). The ranges hold what is
learned in one place too; what is here holds where an update leaves a site, fine-tuning included.
"""

import functools
import math

from sscxr.config import Config, FederationConfig
from sscxr.config.schema import MIXED_IMAGES

MEMBERS = 3  # the sum of two shows each of them the other's update


def problem(config: Config) -> str:
    """Return, in one line, what a federation may not ask of a site; empty if all is allowed.

    The ranges bound pretraining's batches; `sscxr finetune`, whose updates stay, may use smaller ones.
    """
    if not config.pretrains and config.finetune.batch_size < MIXED_IMAGES:
        return (
            f"finetune.batch_size={config.finetune.batch_size}: in a federation at least {MIXED_IMAGES}, or an "
            "update reveals single images"
        )
    if config.run.stage == "classify" and config.classify.per_class:
        return (
            f"classify.per_class={config.classify.per_class}: in a federation 0, or an update is of "
            "the few images that it draws"
        )
    return _problem_of_members(config) if config.federation.secure else ""


def _problem_of_members(config: Config) -> str:
    members, sites = config.federation.members, config.federation.sites
    if len(members) < MEMBERS:
        return (
            f"federation.secure=true with {len(members)} federation.members: at least {MEMBERS}, each by name and "
            "the fingerprint of its identity key"
        )
    strangers = [site for site in sites if site not in members]
    if strangers:
        return f"federation.sites has {strangers[0]}, which federation.members lacks: its updates cannot be masked"
    least = threshold(config.federation)
    if sites and len(sites) < least:
        return (
            f"federation.sites has {len(sites)} sites, a sum needs {least} of {len(members)} federation.members "
            f"(federation.threshold={config.federation.threshold:g}): name more sites"
        )
    return ""


def threshold(federation: FederationConfig) -> int:
    """Return the least number of sites in a secure sum.

    It is more than half of the members: then a server cannot have one set of sites release a site's mask key, and
    another its own seed. With n members and c of them in league with the server, the proof asks for more than
    (n + c) / 2 (Bonawitz et al. 2017, theorem 6.5), which `federation.threshold` of 2/3 is for every c below n/3.
    """
    return max(MEMBERS, math.floor(federation.threshold * len(federation.members)) + 1)


def least_mixed(config: Config, images: int, round_number: int | None = None) -> int:
    """Return the least number of distinct images that an update mixes, in one round or in the worst of all.

    Args:
        images: how many the site trains on.
    """
    # Imported here: reading a join file should not import torch.
    from sscxr.training.batches import round_of

    federation = config.federation
    if federation.sends == "gradients":  # every round is one step
        return _distinct(images, *round_of(config, images, 0))
    if round_number is None:
        return _worst(images, config.learning.batch_size, federation.local_epochs, federation.rounds)
    return _distinct(images, *round_of(config, images, round_number))


@functools.lru_cache(maxsize=64)  # called at every message
def _worst(images: int, batch: int, local_epochs: float, rounds: int) -> int:
    from sscxr.training.batches import steps_of_round

    steps = (steps_of_round(images, batch, local_epochs, number) for number in range(rounds))
    return min(_distinct(images, batch, each) for each in steps)


def _distinct(images: int, batch: int, steps: range) -> int:
    """Return the distinct images in a round's steps: within an epoch all differ, across two they may repeat."""
    from sscxr.training.batches import batches_per_epoch

    per_epoch = batches_per_epoch(images, batch)
    first, last = steps[0] // per_epoch, steps[-1] // per_epoch
    if first == last:
        longest = len(steps)
    elif last - first > 1:
        longest = per_epoch
    else:
        longest = max(last * per_epoch - steps[0], steps[-1] + 1 - last * per_epoch)
    return images if longest == per_epoch else longest * (images // per_epoch)
