"""The ranges and choices of settings, stated with each setting: `lr: float = number(1e-7, 0.5)`."""

import math
from collections.abc import Iterator
from dataclasses import field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING

ABOVE_ZERO = 1e-12  # the lowest value of a setting that must be positive
# For AdamW's two betas: with less memory than this it is not AdamW, and a step shows its gradient.
BETAS = ((0.5, 0.99), (0.9, 0.9999))


def number(low: float, high: float) -> Any:
    """Return the field of a number, or a list of numbers, each at least `low` and at most `high`."""
    return field(default=MISSING, metadata={"range": (low, high)})


def pair(low: float, high: float) -> Any:
    """Return the field of two numbers in `low .. high`, the lower first."""
    return field(default=MISSING, metadata={"range": (low, high), "pair": True})


def between(low: float, high: float) -> Any:
    """Return the field of the least and the most that is allowed, in `low .. high`; by default all of it."""
    return field(default_factory=lambda: [low, high], metadata={"range": (low, high), "pair": True})


def at_most(high: float) -> Any:
    """Return the field of a limit of at most `high`; by default 0: no limit."""
    return field(default=0, metadata={"range": (0, high)})


def choice(*names: str) -> Any:
    """Return the field of one of some names, or a list of them."""
    return field(default=MISSING, metadata={"choices": names})


def betas() -> Any:
    """Return the field of AdamW's two betas, in `BETAS`."""
    return field(default=MISSING, metadata={"betas": True})


def problems(section: Any, prefix: str = "") -> Iterator[str]:
    """Yield a line on each setting of a section that cannot be used, with its name and value.

    Args:
        section: an instance of a dataclass of settings; sections inside it are searched too.
        prefix: the start of the settings' names, such as "pretrain.".
    """
    for item in fields(section):
        value, key = getattr(section, item.name), prefix + item.name
        if is_dataclass(value):
            yield from problems(value, f"{key}.")
        elif "range" in item.metadata:
            low, high = item.metadata["range"]
            for one in value if isinstance(value, list) else [value]:
                if one is not None and not (math.isfinite(one) and low <= one <= high):
                    least = "above 0" if low == ABOVE_ZERO else f"at least {low:g}"
                    yield f"{key}={value}: {least}, at most {high:.12g}"
            if "pair" in item.metadata and (len(value) != 2 or value[0] > value[1]):
                yield f"{key}={value}: give two numbers, the lower first"
        elif "choices" in item.metadata:
            for one in value if isinstance(value, list) else [value]:
                if one is not None and one not in item.metadata["choices"]:
                    yield f"{key}={one!r} is none of {', '.join(item.metadata['choices'])}"
        elif "betas" in item.metadata:
            yield from _betas(key, value)


def _betas(key: str, values: list[float]) -> Iterator[str]:
    if len(values) != 2:
        yield f"{key}={values} needs two numbers"
    elif not all(low <= beta <= high for beta, (low, high) in zip(values, BETAS, strict=True)):
        (least, most), (slowest, longest) = BETAS
        yield (
            f"{key}={values}: the first at least {least}, at most {most}; the second at least {slowest}, "
            f"at most {longest}"
        )
