"""The limits of a `site.yaml`: how large a run may be at this site, beside what the approved recipes fix."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from sscxr import config as configs
from sscxr.config import Config, fields


@dataclass
class Limits:
    """What runs may ask of this site. A pair has the least and the most that is allowed.

    Attributes:
        batch_size: images a step, in the recipe, and in this site's own batches, which may be smaller.
        round_images: images of all steps of a round, one counted as often as it is used; `min_mixed` is the least
            number of different ones.
        round_steps: steps of a round.
        img_size: px a side of the model's input.
        million_parameters: of the encoder and its head.
        rounds_a_day: rounds of training in any 24 hours, of all runs together; counted by the site service.
        round_seconds: of training in a round; the run's own deadline where that is less.
    """

    batch_size: list[int] = fields.between(1, 2**16)
    round_images: list[int] = fields.between(1, 10**9)
    round_steps: list[int] = fields.between(1, 10**7)
    img_size: list[int] = fields.between(8, 4096)
    million_parameters: list[float] = fields.between(0, 10**5)
    rounds_a_day: int = fields.at_most(10**5)
    round_seconds: float = fields.at_most(30 * 86400)


def problem(limits: Limits) -> str:
    """Return one line on the first limit that cannot be used; empty if all can."""
    return next(fields.problems(limits, "limits."), "")


def of_recipe(limits: Limits, config: Config) -> str:
    """Return one line on what a recipe asks for beyond the limits, at any site; empty if nothing."""
    return next(_of_recipe(limits, config), "")


def of_rounds(limits: Limits, config: Config, images: int) -> str:
    """Return one line on what a run's rounds ask for beyond the limits, at a site of so many images; or empty."""
    return next(_of_rounds(limits, config, images), "")


def _of_recipe(limits: Limits, config: Config) -> Iterator[str]:
    section = "pretrain" if config.pretrains else "finetune"
    batch = config.learning.batch_size
    if config.federation.sends != "gradients":  # whose steps are a share of the site's images
        yield from _outside(limits, "batch_size", batch, f"{section}.batch_size={batch}")
    resized = not config.pretrains and config.finetune.img_size > 0
    size = config.finetune.img_size if resized else config.encoder.img_size
    name = "finetune" if resized else "encoder"
    yield from _outside(limits, "img_size", size, f"{name}.img_size={size}")
    if limits.million_parameters != Limits().million_parameters:
        millions = round(_parameters(configs.dumps(config)) / 1e6, 2)
        asked = f"encoder.name={config.encoder.name}, a model of {millions:g} million parameters"
        yield from _outside(limits, "million_parameters", millions, asked)


@functools.lru_cache(maxsize=8)  # called at every message
def _parameters(config: str) -> int:
    # Imported here: `sscxr site log` should not wait for torch.
    import torch

    from sscxr import stages

    with torch.device("meta"):  # only shapes: takes neither memory nor time
        parts = stages.of(configs.loads(config)).parts()
    return sum(one.numel() for part in (parts.encoder, parts.head) for one in part.parameters())


def _of_rounds(limits: Limits, config: Config, images: int) -> Iterator[str]:
    batch, *spans = _spans(configs.dumps(config), images)
    batches = _batches(images, batch)
    local = f"federation.local_epochs={config.federation.local_epochs:g} of {images} images"
    for steps in spans:
        yield from _outside(limits, "round_steps", steps, f"{local}, rounds of {steps} steps")
        used = round(steps * images / batches)
        yield from _outside(limits, "round_images", used, f"{local}, rounds that use {used}")
    smallest, largest = images // batches, -(-images // batches)
    for size in (smallest, largest) if config.federation.sends == "gradients" else (smallest,):
        yield from _outside(limits, "batch_size", size, f"steps of {size} of this site's {images} images")


@functools.lru_cache(maxsize=8)  # called at every message
def _spans(config: str, images: int) -> tuple[int, int, int]:
    """Return the images a step, and the fewest and the most steps of the run's rounds."""
    from sscxr.training.batches import round_of  # as above

    read = configs.loads(config)
    steps = [len(round_of(read, images, number)[1]) for number in range(read.federation.rounds)]
    return round_of(read, images, 0)[0], min(steps), max(steps)


def _batches(images: int, batch: int) -> int:
    from sscxr.training.batches import batches_per_epoch  # as above

    return batches_per_epoch(images, batch)


def _outside(limits: Limits, name: str, value: float, asked: str) -> Iterator[str]:
    least, most = getattr(limits, name)
    if not least <= value <= most:
        yield f"the run asks for {asked}; site.yaml allows limits.{name}={[least, most]}"
