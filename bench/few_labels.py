"""The gain of pretrained encoders with few labels: against the same network untrained, seed by seed.

    python bench/few_labels.py --encoder ENCODER --data CACHE --label pneumonia --source paeds_gwcmc \
        --per-class 10,20,50,100 --seeds 5 --out few.jsonl --picture few.svg

Each line of the file is one draw of images, on which every encoder and the untrained network are fine-tuned: AUROC,
average precision and accuracy on the test patients. Run again, it continues after the draws that are there. The
tables have the mean over the seeds with its 95 % interval (Student's t over seeds: draws of images, of heads and of
views; not of test patients), and the picture shows the AUROC. --per-class 0 uses all labels. Several encoders have
names: --encoder adults=runs/adults/encoder --encoder all=runs/all/encoder.
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

UNTRAINED = "untrained"
FIGURES = {"auroc": "AUROC", "aupr": "average precision", "accuracy": "accuracy"}
MARKERS = "os^Dv<>"


def tuned(
    arguments: argparse.Namespace, encoders: Mapping[str, Path], cache: Cache, keys: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the figures of each encoder and of the untrained network, fine-tuned on the same images."""
    began = monotonic()
    few = [f"run.seed={keys['seed']}", f"classify.per_class={keys['per_class']}"]
    few.append("probe.resamples=1")  # the interval is over seeds
    found: dict[str, Any] = {}
    for name, encoder in encoders.items():
        config = pairs.settings(encoder, arguments.label, [*arguments.overrides, *few])
        starts = pairs.STARTS if UNTRAINED not in found else pairs.STARTS[:1]
        with tempfile.TemporaryDirectory() as scratch:
            both = pairs.pair(encoder, cache, config, names(arguments.source), Path(scratch), starts)
        for start, one in both.items():
            key = UNTRAINED if start == UNTRAINED else name
            found[key] = {figure: float(one.figures[figure]["value"]) for figure in FIGURES}
            found["test"] = one.figures["n"]
    return [{**found, "seconds": round(monotonic() - began, 1)}]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and half of its 95 % interval over seeds; NaN for one seed."""
    if len(values) < 2:
        return fmean(values), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values), half


def table(figure: str, encoders: Sequence[str], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return a table of one figure; found: images a class -> its draws."""
    gains = [f"gain of {name}" if len(encoders) > 1 else "gain" for name in encoders]
    heading = ["images a class", "seeds", UNTRAINED, *encoders, *gains]
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    for count, draws in found.items():
        values = {name: [draw[name][figure] for draw in draws] for name in (UNTRAINED, *encoders)}
        gained = [
            [one - other for one, other in zip(values[name], values[UNTRAINED], strict=True)]
            for name in encoders
        ]
        cells = [f"{mean:.3f} +- {half:.3f}" for mean, half in map(interval, [*values.values(), *gained])]
        lines.append(f"| {count} | {len(draws)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(
    file: Path, label: str, encoders: Sequence[str], found: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Draw the mean AUROC of each start by labels a class, with its interval; found as in `table`."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate((*encoders, UNTRAINED)):
        each = [interval([draw[name]["auroc"] for draw in draws]) for draws in found.values()]
        means, halves = zip(*each, strict=True)
        style = f"{MARKERS[place % len(MARKERS)]}{'--' if name == UNTRAINED else '-'}"
        axes.errorbar(list(found), means, yerr=halves, fmt=style, capsize=3, label=name)
    axes.set_xlabel("labelled images a class")
    axes.set_ylabel(f"AUROC of {label}")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)


def named(texts: Sequence[str]) -> dict[str, Path]:
    """Return the encoders' folders by name: `NAME=PLACE`, or a place alone, which is called "pretrained"."""
    found = {}
    for text in texts:
        name, sign, place = text.partition("=")
        found[name if sign else "pretrained"] = fetch.located(place if sign else text)
    if len(found) < len(texts) or UNTRAINED in found:
        raise SystemExit(f"--encoder {' '.join(texts)}: give each a name of its own, as in adults=FOLDER")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--encoder", action="append", required=True, help="[NAME=] a released encoder: folder or address"
    )
    parser.add_argument("--data", type=Path, required=True, help="a prepared site cache")
    parser.add_argument("--label", required=True)
    parser.add_argument("--source", required=True, help="one source, or several of one hospital, by commas")
    parser.add_argument("--per-class", default="10,20,50,100")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path, help="draw the curve: .svg or .png")
    parser.add_argument("overrides", nargs="*", help="settings, such as finetune.min_steps=200")
    arguments = parser.parse_intermixed_args()
    encoders, cache = named(arguments.encoder), open_cache(arguments.data)
    counts = [int(count) for count in arguments.per_class.split(",")]
    wanted = [{"per_class": count, "seed": seed} for seed, count in product(range(arguments.seeds), counts)]
    done = pairs.resumed(arguments.out, wanted, lambda keys: tuned(arguments, encoders, cache, keys))
    found = {str(count or "all"): [one for one in done if one["per_class"] == count] for count in counts}
    for place, (figure, title) in enumerate(FIGURES.items()):
        print(*([] if place == 0 else [""]), f"{title} of {arguments.label}", "", sep="\n")
        print(table(figure, list(encoders), found))
    if arguments.picture:
        picture(arguments.picture, arguments.label, list(encoders), found)


if __name__ == "__main__":
    main()
