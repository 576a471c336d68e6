"""A cache in which a label is easily seen, and settings under which a small model learns it in seconds."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from caches import make_cache

from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.finetuning import tune

QUICK = (
    *("finetune.epochs=4", "finetune.min_steps=0", "finetune.batch_size=16", "finetune.lr=3e-3"),
    *("finetune.layer_decay=0.9", "finetune.val_share=0.25", "data.test_share=0.3", "run.threads=1"),
    *("run.device=cpu", "probe.resamples=50"),
)


def spotted(
    folder: Path, *, patients: int = 60, each: int = 2, size: int = 40, labels: Any = None, **columns: Any
) -> Cache:
    """A cache of grey noise, `each` images a patient; those of every second patient have a bright spot.

    Args:
        labels: {"label:NAME": [N]}; default: `label:spot`, and `label:rare`, unknown for every third patient.
        columns: further columns of the index.
    """
    count = patients * each
    patient = np.arange(count) // each
    spot = patient % 2 == 1
    images = np.random.default_rng(0).integers(60, 120, (count, size, size), dtype=np.uint8)
    third = size // 3
    images[spot, third : 2 * third, third : 2 * third] = 250
    rare: npt.NDArray[np.float64] = np.where(patient % 3 == 0, np.nan, (patient % 5 == 0).astype(float))
    index: dict[str, Any] = {
        "group": [f"{number:016x}" for number in patient],
        "split": ((patient * 0.618034) % 1).round(6),
        "source": np.where(patient % 4 < 2, "north", "south"),
        **(labels if labels is not None else {"label:spot": spot.astype(int), "label:rare": rare}),
        **columns,
    }
    return make_cache(folder, images, index)


def settings(encoder: Path, *overrides: str, labels: tuple[str, ...] = ("spot",)) -> Config:
    """Settings of a quick classification from the encoder in that folder."""
    config = tune.settings(encoder, "classify", "default", [*QUICK, *overrides])
    config.classify.labels = list(labels)
    return config
