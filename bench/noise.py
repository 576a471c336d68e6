"""A cache of noise, for benches that do not depend on image content."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sscxr.data.cache.cache import FORMAT_VERSION, INDEX_COLUMNS, TEXT_COLUMNS

_BLOCK = 10_000  # rows made at a time


def make(folder: Path, images: int, size: int, *, sparse: bool = False) -> Path:
    """Write a cache of images, one per patient, every fifth of them set aside.

    Args:
        sparse: the images are a hole in a file, which reads as zeros and takes no space.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(images, size, size)
    )
    for start in range(0, 0 if sparse else images, _BLOCK):
        block = pixels[start : start + _BLOCK]
        block[:] = rng.integers(0, 256, block.shape, dtype=np.uint8)
    pixels.flush()
    with (folder / "index.csv").open("w") as file:
        file.write(",".join([*INDEX_COLUMNS, "label:pneumonia", "label:effusion"]) + "\n")
        file.writelines(_rows(images, size))
    (folder / "summary.json").write_text(
        json.dumps({"format_version": FORMAT_VERSION, "images": images, "size": size, "sources": ["noise"]})
    )
    return folder


def _rows(images: int, size: int) -> Iterable[str]:
    views, sexes, ages = ("PA", "AP", "AP supine", "L"), ("F", "M", ""), ("40-59", "60-79", "80+", "")
    whole = dict.fromkeys(INDEX_COLUMNS, "0") | dict.fromkeys(TEXT_COLUMNS, "")
    whole |= {"source": "noise", "licence": "CC0-1.0", "spacing_mm": "0.143", "grey_range": "window"}
    whole |= {"height": "2500", "width": "2048", "content_height": str(size), "content_width": str(size)}
    for row in range(images):
        whole["image"], whole["group"] = f"{row * 0x9E3779B97F4A7C15 % 2**64:016x}", f"{row:016x}"
        whole["view"], whole["sex"], whole["age_band"] = views[row % 4 % 3], sexes[row % 3], ages[row % 4]
        whole["split"] = f"{(row * 0.6180339887) % 1:.8f}"
        yield ",".join([*whole.values(), str(row % 2), ""]) + "\n"
