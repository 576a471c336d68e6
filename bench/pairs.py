"""A pretrained encoder and the same network untrained, fine-tuned alike; the file of results can be continued."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sscxr import config as configs
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.finetuning import tune

STARTS = ("pretrained", "untrained")


def settings(encoder: Path, label: str, overrides: Sequence[str]) -> Config:
    """Return the settings of a classifier of a label; without one, of a lung segmenter."""
    if not label:
        return tune.settings(encoder, "segment", "segment", overrides)
    config = tune.settings(encoder, "classify", "default", overrides)
    config.classify.labels = [label]
    return config


def pair(
    encoder: Path,
    cache: Cache,
    config: Config,
    sources: Sequence[str],
    folder: Path,
    starts: Sequence[str] = STARTS,
) -> dict[str, tune.Tuned]:
    """Run both fine-tunings on the same images and draws; return results by start. The models are in `folder`."""
    config = configs.loads(configs.dumps(config))
    config.data.cache_size = cache.size
    return {
        start: tune.fine_tune(tune.Job(encoder, cache, config, folder / start, sources, start == "untrained"))
        for start in starts
    }


def resumed(
    file: Path, wanted: Iterable[Mapping[str, Any]], measured: Callable[[Mapping[str, Any]], list[Any]]
) -> list[dict[str, Any]]:
    """Measure what a JSON-lines file lacks, add it, and return all its lines.

    Args:
        file: each line is one object with the keys and the figures of a measurement.
        wanted: keys that identify each measurement.
        measured: returns the measurements for one of `wanted`, a mapping each.
    """
    lines = file.read_text().splitlines() if file.exists() else []
    done = [json.loads(line) for line in lines]
    for keys in wanted:
        if any(keys.items() <= one.items() for one in done):
            continue
        found = [{**keys, **one} for one in measured(keys)]
        with file.open("a") as handle:
            handle.write("".join(json.dumps(one) + "\n" for one in found))
        done += found
    return done
