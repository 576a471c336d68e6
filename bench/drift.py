"""Training at one source and testing at another: a pretrained encoder against the same network untrained.

    python bench/drift.py --encoder ENCODER --data CACHE --label pneumonia \
        --train paeds_gwcmc,nih_cxr14_1000 --test paeds_gwcmc,nih_cxr14_1000,covid_idc --out drift.jsonl

Without --label, lungs are segmented. Each pair of fine-tunings learns from one source with one seed, and both are
judged at every source, on the images of patients that neither learned from: each line of the file is one such
test, {value, low, high, n} of the two and of their paired difference, by bootstrap over patients. Run again,
it continues after the pairs that are there. The table has the mean over the seeds of each value and of the ends of
its interval, and the numbers of images and patients.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import Any

import pairs

from sscxr.commands.model import names
from sscxr.data.cache.cache import open_cache
from sscxr.finetuning import judge
from sscxr.release import fetch


def tests(arguments: argparse.Namespace, encoder: Path, keys: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Judge one pair of fine-tunings at a source on every source; return a mapping for each."""
    began, source = monotonic(), str(keys["train"])
    config = pairs.settings(encoder, arguments.label, [*arguments.overrides, f"run.seed={keys['seed']}"])
    name = "auroc" if arguments.label else "dice"
    with tempfile.TemporaryDirectory() as scratch:
        tuned = pairs.pair(encoder, open_cache(arguments.data), config, [source], Path(scratch))
        folders = [tuned[start].folder for start in pairs.STARTS]
        seconds = monotonic() - began
        found = []
        for tested in names(arguments.test) or names(arguments.train):
            figures = judge.compare(*folders, arguments.data, sources=[tested]).figures
            both = {start: figures[place][name] for start, place in zip(pairs.STARTS, "ab", strict=True)}
            about = {"patients": figures["patients"], "seconds": round(seconds, 1)}
            found.append({"test": tested, **both, "gain": figures[name], **about})
    return found


def cell(rows: Sequence[Mapping[str, Any]], name: str, sign: str = "") -> str:
    """Return the mean over seeds of a figure and of the ends of its interval; empty if there is none."""
    figures = [row[name] for row in rows if row[name]["low"] is not None]
    if not figures:
        return ""
    value, low, high = (fmean(figure[end] for figure in figures) for end in ("value", "low", "high"))
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", required=True, help="a released encoder: a folder, or an address")
    parser.add_argument("--data", type=Path, required=True, help="a prepared site cache")
    parser.add_argument("--label", default="", help="to classify; without it, lungs are segmented")
    parser.add_argument("--train", required=True, help="sources, by commas: one pair learns from each")
    parser.add_argument("--test", default="", help="sources, by commas; default: those of --train")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="settings, such as finetune.epochs=10")
    arguments = parser.parse_intermixed_args()
    encoder = fetch.located(arguments.encoder)
    wanted = [
        {"seed": seed, "train": source}
        for seed, source in product(range(arguments.seeds), names(arguments.train))
    ]
    done = pairs.resumed(arguments.out, wanted, lambda keys: tests(arguments, encoder, keys))
    figure = "AUROC" if arguments.label else "Dice"
    print(f"| learned from | tested on | images of patients | {figure}, pretrained | untrained | gain |")
    print("|---|---|---|---|---|---|")
    for train, test in dict.fromkeys((one["train"], one["test"]) for one in done):
        rows = [one for one in done if (one["train"], one["test"]) == (train, test)]
        of = f"{rows[0]['gain']['n']} of {rows[0]['patients']}"
        cells = [cell(rows, start) for start in pairs.STARTS]
        print(f"| {train} | {test} | {of} | {' | '.join(cells)} | {cell(rows, 'gain', '+')} |")


if __name__ == "__main__":
    main()
