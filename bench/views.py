"""Views and corruption of whole batches, compared with a loader written the usual way.

    python bench/views.py --config demo --json views.json
    python bench/views.py --config default pretrain.batch_size=16 --repetitions 3 --originals 1024

The plain loader opens each JPEG with Pillow, makes a random resized crop with jitter, and stamps blocks in a loop
until an image's budget is met, in a worker of torch's DataLoader, like the published GMML scripts and most
others. Its files have the cache's size, or with `--originals` a corpus's own, such as NIH's 1024 px a side.
Ours gathers pictures from the cache's memory map, and crops, varies and corrupts the batch as a whole.
Both draw by the recipe's settings, and both run on one thread.

Goals: at least 5 times as many views a second and a core, and at most 5 % of the step's time.
"""

import argparse
import math
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance, ImageFilter
from step import Bench, noise
from timing import in_turn, ratios, report
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sscxr import config as configs
from sscxr.config import Config
from sscxr.data.phantoms import phantom

IMAGES = 64


class PlainLoader(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Clean view, corrupted view and mask of one file at a time."""

    def __init__(self, files: list[Path], config: Config) -> None:
        self.files, self.config = files, config

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        clean = self.view(self.files[number])
        other = self.view(self.files[random.randrange(len(self.files))])
        mask, settings = self.mask(), self.config.gmml
        kind = random.choice(settings.kinds)
        content = {"alien": other, "noise": torch.randn_like(clean), "zeros": torch.zeros_like(clean)}[kind]
        return clean, torch.where(mask, content, clean), mask

    def view(self, file: Path) -> Tensor:
        """Return a crop of one picture, float32 [1, H, W], normalised."""
        settings, size = self.config.augment, self.config.encoder.img_size
        image = Image.open(file).convert("L")
        side = image.width
        area = random.uniform(*settings.crop_scale) * side**2
        ratio = math.exp(random.uniform(*(math.log(end) for end in settings.crop_ratio)))
        width, height = min(side, math.sqrt(area * ratio)), min(side, math.sqrt(area / ratio))
        left, top = random.uniform(0, side - width), random.uniform(0, side - height)
        image = image.resize(
            (size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
        )
        if random.random() < settings.blur:
            image = image.filter(ImageFilter.GaussianBlur(1))
        for change, most in (
            (ImageEnhance.Brightness, settings.brightness),
            (ImageEnhance.Contrast, settings.contrast),
        ):
            image = change(image).enhance(1 + random.uniform(-most, most))
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
        return ((pixels - self.config.data.mean) / self.config.data.std).unsqueeze(0)

    def mask(self) -> Tensor:
        """Return blocks stamped until they cover a budget, bool [1, H, W]."""
        settings, size = self.config.gmml, self.config.encoder.img_size
        budget = random.uniform(*settings.drop_budget) * size**2
        mask, longest = torch.zeros(1, size, size, dtype=torch.bool), int(settings.max_block * size)
        while mask.sum() < budget:
            height, width = (random.randint(settings.align, longest) for _ in range(2))
            height, width = (
                max(1, round(side / settings.align)) * settings.align for side in (height, width)
            )
            top, left = (random.randrange(0, size, settings.align) for _ in range(2))
            mask[:, top : top + height, left : left + width] = True
        return mask


def pictures(folder: Path, size: int) -> list[Path]:
    """Write phantoms as JPEG files of `size` px."""
    rng, files = np.random.default_rng(0), []
    few: list[npt.NDArray[np.float32]] = [phantom.draw(rng, size=size)[0] for _ in range(8)]
    for number in range(IMAGES):
        image = Image.fromarray(np.rint(few[number % 8] * 255).astype(np.uint8)).resize((size, size))
        files.append(folder / f"{number}.jpg")
        image.save(files[-1], quality=90)
    return files


def measure(config: Config, repetitions: int, originals: int) -> dict[str, object]:
    """Return all figures of one recipe on this machine."""
    settings, cached = config.pretrain, config.data.cache_size
    config.run.threads = 1
    with tempfile.TemporaryDirectory() as folder:
        files = pictures(Path(folder), originals or cached)
        cache = noise(Path(folder), config, IMAGES)
        bench = Bench(config, cache, steps=1)
        loader = PlainLoader(files, config)
        rows = np.arange(settings.batch_size) % IMAGES

        def ours() -> None:
            bench.pixels = torch.from_numpy(cache.images[rows]).to(bench.device)
            bench.training.objective.corrupt(*bench.views(), bench.source)

        pixels = torch.from_numpy(cache.images[rows]).to(bench.device)

        def on_the_device() -> None:
            # As in the step that it is a share of: a thread gathers the pixels beside the training.
            bench.pixels = pixels
            bench.training.objective.corrupt(*bench.views(), bench.source)

        def plain() -> None:
            torch.utils.data.default_collate([loader[number] for number in range(16)])

        things: dict[str, Callable[[], Any]] = {
            "ours": ours, "there": on_the_device, "plain": plain, "step": bench.full,
        }  # fmt: skip
        in_turn(things, 2)
        times = in_turn(things, repetitions)
        workers = in_turn({"ours": partial(_several, ours), "plain": partial(_epoch, loader)}, 3)
    per_batch = settings.batch_size * settings.views
    faster = ratios(times["ours"], times["plain"], per_base=per_batch, per_other=16)
    with_worker = ratios(workers["ours"], workers["plain"], per_base=8 * per_batch, per_other=IMAGES)
    return {
        "recipe": f"cache {cached} px, views {config.encoder.img_size} px, batch {per_batch}",
        "the plain loader's files": f"{originals or cached} px",
        "views_per_s": {
            "ours": 1 / times["ours"].figures(per_batch)["wall_min"],
            "plain": 1 / times["plain"].figures(16)["wall_min"],
        },
        "times as fast": faster,
        "against one worker": {name: with_worker[name] for name in ("wall_min", "wall_median")},
        "share of the step": ratios(times["step"], times["there"]),
    }


def _several(do: Callable[[], None]) -> None:
    for _ in range(8):
        do()


def _epoch(loader: PlainLoader) -> None:
    for _ in DataLoader(loader, batch_size=16, num_workers=1):
        pass


def main() -> None:
    """Print the figures and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="demo", help="the recipe whose views are made")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--originals", type=int, default=0, help="px a side of the plain loader's files")
    parser.add_argument("--json", help="where to write the figures")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    config = configs.load(given.config, given.overrides)
    report(measure(config, given.repetitions, given.originals), given.json)


if __name__ == "__main__":
    main()
