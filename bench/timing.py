"""Shared code of the benchmarks: timing in turn, on a machine that others use too."""

import functools
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, thread_time
from typing import Any


@dataclass
class Times:
    """Seconds of one thing, by repetition.

    Attributes:
        wall: wall time, including the device's work.
        cpu: CPU time of this process's threads, without other programs.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def figures(self, per: float) -> dict[str, float]:
        """Return least and median wall time, and least CPU time, each divided by `per`."""
        return {
            "wall_min": min(self.wall) / per,
            "wall_median": median(self.wall) / per,
            "cpu_min": min(self.cpu) / per,
        }


def in_turn(things: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, Times]:
    """Time each thing once, then each again, and so on, so that a slow machine slows all of them."""
    times = {name: Times() for name in things}
    for _ in range(repetitions):
        for name, do in things.items():
            _wait()
            wall, cpu = perf_counter(), process_time()
            do()
            _wait()
            times[name].wall.append(perf_counter() - wall)
            times[name].cpu.append(process_time() - cpu)
    return times


def ratios(base: Times, other: Times, *, per_base: float = 1, per_other: float = 1) -> dict[str, float]:
    """Return `other`'s time as a share of `base`'s, by each figure; the last is the median over repetitions."""
    above, below = other.figures(per_other), base.figures(per_base)
    pairs = zip(other.wall, base.wall, strict=True)
    each = median(a / per_other / (b / per_base) for a, b in pairs)
    return {name: above[name] / below[name] for name in above} | {"each_median": each}


def _wait() -> None:
    torch = sys.modules.get("torch")  # without the import nothing runs on a device
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def rounded(found: object) -> object:
    """Return numbers to four significant digits."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    return float(f"{found:.4g}") if isinstance(found, float) else found


def report(found: dict[str, object], file: str | None) -> None:
    """Print figures line by line, and write them as JSON if a file is named."""
    found = {name: rounded(value) for name, value in found.items()}
    for name, value in found.items():
        text = "  ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name:<22} {text}")
    if file:
        Path(file).write_text(json.dumps(found, indent=1), encoding="utf-8")


def timed_calls(real: Callable[..., Any], part: str, spent: Counter[str]) -> Callable[..., Any]:
    """Return a function that adds this thread's processor time in each call of `real` to `spent[part]`."""

    @functools.wraps(real)
    def function(*args: Any, **kwargs: Any) -> Any:
        began = thread_time()
        try:
            return real(*args, **kwargs)
        finally:
            spent[part] += thread_time() - began

    return function
