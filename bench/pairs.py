"""A pretrained encoder and the same network untrained, fine-tuned alike; results in a file that is gone on with."""

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
    """The settings of a classifier of that label; without one, of a lung segmenter."""
    if not label:
        return tune.settings(encoder, "segment", "segment", overrides)
    config = tune.settings(encoder, "classify", "default", overrides)
    config.classify.labels = [label]
    return config


def pair(
    encoder: Path, cache: Cache, config: Config, sources: Sequence[str], folder: Path
) -> dict[str, tune.Tuned]:
    """Both fine-tunings, on the same images and draws, by the name of their start; the models are in `folder`."""
    config = configs.loads(configs.dumps(config))
    config.data.cache_size = cache.size
    learn = tune.classify if config.run.stage == "classify" else tune.segment
    return {
        start: learn(tune.Job(encoder, cache, config, folder / start, sources, start == "untrained"))
        for start in STARTS
    }


def resumed(
    file: Path, wanted: Iterable[Mapping[str, Any]], measured: Callable[[Mapping[str, Any]], list[Any]]
) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file, after those that are not there yet were measured and added to it.

    Args:
        file: each line is what was wanted and what was measured, in one object.
        wanted: keys that tell one measurement from the others.
        measured: the measurements that one of `wanted` gives: a mapping each.
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
