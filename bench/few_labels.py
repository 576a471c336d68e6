"""The gain of a pretrained encoder with few labels: AUROC against the same network untrained, seed by seed.

    python bench/few_labels.py --encoder ENCODER --data CACHE --label pneumonia --source paeds_gwcmc \
        --per-class 10,20,50,100 --seeds 5 --out few.jsonl --picture few.svg

Each line of the file is one pair of fine-tunings on the same drawn images: both AUROCs on the test patients, and
their difference. Run again, it continues after the pairs that are there. The table and the picture have the mean
over the seeds with its 95 % interval (Student's t over seeds: draws of images, of heads and of views; not of test
patients). --per-class 0 uses all labels.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from time import monotonic
from typing import Any

import pairs
from matplotlib.figure import Figure
from scipy import stats

from sscxr.commands.model import names
from sscxr.data.cache.cache import Cache, open_cache
from sscxr.release import fetch

STYLES = {"pretrained": "o-", "untrained": "s--"}


def aurocs(
    arguments: argparse.Namespace, encoder: Path, cache: Cache, keys: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the AUROC of the pretrained and of the untrained network, on the same images."""
    began = monotonic()
    few = [f"run.seed={keys['seed']}", f"classify.per_class={keys['per_class']}"]
    few.append("probe.resamples=1")  # the interval is over seeds
    config = pairs.settings(encoder, arguments.label, [*arguments.overrides, *few])
    with tempfile.TemporaryDirectory() as scratch:
        tuned = pairs.pair(encoder, cache, config, names(arguments.source), Path(scratch))
    found = {start: float(one.figures["auroc"]["value"]) for start, one in tuned.items()}
    about = {"test": tuned["pretrained"].figures["n"], "seconds": round(monotonic() - began, 1)}
    return [{**found, "gain": found["pretrained"] - found["untrained"], **about}]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and half of its 95 % interval over seeds; NaN for one seed."""
    if len(values) < 2:
        return fmean(values), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values), half


def picture(file: Path, label: str, counts: Sequence[str], found: Mapping[str, Sequence[Any]]) -> None:
    """Draw the mean AUROC of each start by labels a class, with its interval; found: start -> (mean, half)."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for start, style in STYLES.items():
        means, halves = zip(*found[start], strict=True)
        axes.errorbar(counts, means, yerr=halves, fmt=style, capsize=3, label=start)
    axes.set_xlabel("labelled images a class")
    axes.set_ylabel(f"AUROC of {label}")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", required=True, help="a released encoder: a folder, or an address")
    parser.add_argument("--data", type=Path, required=True, help="a prepared site cache")
    parser.add_argument("--label", required=True)
    parser.add_argument("--source", required=True, help="one source, or several of one hospital, by commas")
    parser.add_argument("--per-class", default="10,20,50,100")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path, help="draw the curve: .svg or .png")
    parser.add_argument("overrides", nargs="*", help="settings, such as finetune.min_steps=200")
    arguments = parser.parse_intermixed_args()
    encoder, cache = fetch.located(arguments.encoder), open_cache(arguments.data)
    counts = [int(count) for count in arguments.per_class.split(",")]
    wanted = [{"per_class": count, "seed": seed} for seed, count in product(range(arguments.seeds), counts)]
    done = pairs.resumed(arguments.out, wanted, lambda keys: aurocs(arguments, encoder, cache, keys))
    shown = [str(count or "all") for count in counts]
    columns = {
        name: [interval([one[name] for one in done if one["per_class"] == count]) for count in counts]
        for name in (*pairs.STARTS, "gain")
    }
    print("| images a class | seeds | pretrained | untrained | gain |\n|---|---|---|---|---|")
    for place, count in enumerate(counts):
        seeds = sum(one["per_class"] == count for one in done)
        cells = [f"{mean:.3f} +- {half:.3f}" for mean, half in (one[place] for one in columns.values())]
        print(f"| {shown[place]} | {seeds} | {' | '.join(cells)} |")
    if arguments.picture:
        picture(arguments.picture, arguments.label, shown, columns)


if __name__ == "__main__":
    main()
