"""The pretraining step: its time besides the model's, and the time of the data besides the step's.

    python bench/step.py --config demo --json step.json
    python bench/step.py --config default pretrain.batch_size=8 run.threads=1

Three things are timed in turn, repeatedly: the bare forward and backward pass of encoder and head on a corrupted
batch that is there already; the whole step on cached pixels that are there (views, corruption, loss, clipping,
optimiser, by the training loop itself); a round of the same steps from the cache on the disk, by
`SiteTraining.train_round`. Then the machine's own matmul at the recipe's precision, and the share of it that each
reaches.

Goals: the whole step at least 0.93 of the bare pass, the round at least 0.97 of the whole step. On a busy machine
the least times (`wall_min`, `cpu_min`) are more reliable than the medians. The images are noise unless --data names
a cache: the time does not depend on their content.
"""

import argparse
import copy
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from timing import Times, in_turn, ratios, report
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sscxr import config as configs
from sscxr import seeds
from sscxr.config import Config
from sscxr.data.cache.cache import Cache, open_cache
from sscxr.objectives.gmml import GMML
from sscxr.stages import pretrain
from sscxr.training import optim
from sscxr.training.device import autocast, set_up
from sscxr.training.loop import Stretch, train

# Rows and columns: of the sizes tried, those with the fastest products.
MATMUL = {"cpu": 1024, "cuda": 8192}


class Bench:
    """One site's training, and the three things that are timed."""

    def __init__(self, config: Config, cache: Cache, steps: int) -> None:
        self.config, self.steps = config, steps
        self.device = set_up(config)
        self.training = pretrain.SiteTraining(config, self.device, cache)
        settings = config.pretrain
        self.rows = np.arange(steps * settings.batch_size) % len(cache.images)
        self.pixels = torch.from_numpy(cache.images[self.rows[: settings.batch_size]]).to(self.device)
        self.source = seeds.generator(self.device, 0, "bench")
        self.clean = self.views()
        objective = self.training.objective
        self.corruption = objective.corrupt(*self.clean, self.source) if isinstance(objective, GMML) else None

    def views(self) -> list[Tensor]:
        """Return a batch's groups of views, from pixels in memory."""
        return [
            pretrain.views(self.pixels.repeat(group.count, 1, 1), self.config, group, self.source)
            for group in self.training.objective.views
        ]

    def autocast(self) -> AbstractContextManager[object]:
        """Return the recipe's precision on this device."""
        return autocast(self.config.pretrain.amp, self.device)

    def pass_of_model(self) -> None:
        """Run one forward and backward pass of encoder and head; GMML's without its corruption."""
        objective = self.training.objective
        objective.train()
        with self.autocast():
            if isinstance(objective, GMML) and self.corruption is not None:
                corrupted, mask = self.corruption
                loss = objective.loss(objective.reconstruct(corrupted), *self.clean, mask)
            else:
                loss = objective(self.clean, self.source, 0.5)
        cast(Any, loss).backward()
        objective.zero_grad(set_to_none=True)

    def bare(self) -> None:
        """Run the model alone."""
        for _ in range(self.steps):
            self.pass_of_model()

    def full(self) -> None:
        """Run whole steps on pixels in memory."""

        def batches() -> Iterator[tuple[tuple[list[Tensor], float], list[int]]]:
            for _ in range(self.steps):
                yield (self.views(), 0.5), [0] * len(self.pixels)

        settings = self.config.pretrain
        train(
            self.training.objective,
            self.training.optimiser,
            batches(),
            lambda batch: self.training.loss(batch, self.source),
            stretch=Stretch(self.steps, 0.0, 1.0),
            schedule=optim.Schedule.of(settings),
            clip=settings.clip,
            per_tensor=settings.clip_per_tensor,
            autocast=self.autocast(),
        )

    def pipeline(self) -> None:
        """Run a round from the cache."""
        done = self.training.train_round(self.rows, site="bench", round_number=0, budget=1e9)
        assert done.steps == self.steps


def flops(config: Config, cache: Cache) -> float:
    """Return the floating-point operations of one bare pass; uncompiled, so that the counter sees them."""
    plain = copy.deepcopy(config)
    plain.run.compile = "false"
    bench = Bench(plain, cache, steps=1)
    with FlopCounterMode(display=False) as counter:
        bench.pass_of_model()
    return float(counter.get_total_flops())


def matmul(device: torch.device, dtype: torch.dtype) -> tuple[float, Any]:
    """Return the floating-point operations of a product of two square matrices, and a function that computes it."""
    side = MATMUL[device.type]
    one = torch.randn(side, side, device=device).to(dtype)
    return 2.0 * side**3, lambda: one @ one


def noise(folder: Path, config: Config, images: int) -> Cache:
    """Return memory-mapped images of noise, as in a cache."""
    size = config.data.cache_size
    pixels = np.random.default_rng(0).integers(0, 256, (images, size, size), dtype=np.uint8)
    np.save(folder / "images.npy", pixels)
    return cast(Cache, SimpleNamespace(images=np.load(folder / "images.npy", mmap_mode="r")))


def steps_for(seconds: float, bench: Bench) -> int:
    """Return how many steps take about this long."""
    bench.pass_of_model()
    began = perf_counter()
    bench.pass_of_model()
    return max(2, round(seconds / (perf_counter() - began)))


def measure(config: Config, data: str | None, seconds: float, repetitions: int) -> dict[str, object]:
    """Return all figures of one recipe on this machine."""
    config.federation.local_epochs, config.federation.rounds = 1, 1
    with tempfile.TemporaryDirectory() as folder:
        cache = open_cache(data) if data else noise(Path(folder), config, 512)
        bench = Bench(config, cache, steps=1)
        bench = Bench(config, cache, steps_for(seconds, bench))
        with bench.autocast():
            bf16 = torch.is_autocast_enabled(bench.device.type)
        dtype = torch.bfloat16 if bf16 else torch.float32
        operations, product = matmul(bench.device, dtype)
        needed = flops(config, cache)
        things = {"bare": bench.bare, "full": bench.full, "pipeline": bench.pipeline}
        in_turn(things, 1)  # to warm up
        times = in_turn(things | {"matmul": lambda: [product() for _ in range(20)]}, repetitions)
    return _figures(config, bench, times, flops=needed, peak=operations * 20, dtype=str(dtype))


def _figures(
    config: Config, bench: Bench, times: dict[str, Times], *, flops: float, peak: float, dtype: str
) -> dict[str, object]:
    views = sum(group.count for group in bench.training.objective.views)
    images = bench.steps * config.pretrain.batch_size * views
    names = ("bare", "full", "pipeline")
    best = peak / times["matmul"].figures(1)["wall_min"]
    per_image = {name: times[name].figures(images) for name in names}
    return {
        "recipe": f"{config.encoder.name} x {len(cast(Any, bench.training.objective.encoder).blocks)}, "
        f"{config.encoder.img_size} px, batch {config.pretrain.batch_size} x {views}, {config.pretrain.objective}",
        "device": f"{_device_name(bench.device)}, {config.run.threads} threads, {dtype}",
        "steps": bench.steps,
        "gflop_per_image": flops * bench.steps / images / 1e9,
        "views_per_s": {name: 1 / per_image[name]["wall_min"] for name in names},
        "matmul_gflops": best / 1e9,
        "share_of_matmul": {
            name: flops * bench.steps / times[name].figures(1)["wall_min"] / best for name in names
        },
        "full / bare": ratios(times["full"], times["bare"]),
        "pipeline / full": ratios(times["pipeline"], times["full"]),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def main() -> None:
    """Print the figures and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="demo", help="the recipe that is trained")
    parser.add_argument("--data", help="a cache; none: noise")
    parser.add_argument("--seconds", type=float, default=1.0, help="that each thing takes at a time")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--json", help="where to write the figures")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    config = configs.load(given.config, given.overrides)
    report(measure(config, given.data, given.seconds, given.repetitions), given.json)


if __name__ == "__main__":
    main()
