"""What a pretrained encoder is worth with few labels: AUROC against the same network untrained, seed by seed.

    python bench/few_labels.py --encoder ENCODER --data CACHE --label pneumonia --source paeds_gwcmc \
        --per-class 10,20,50,100 --seeds 5 --out few.jsonl

Each line of the file is one pair of fine-tunings on the same drawn images: both AUROCs on the test patients, and
their difference. Run again, it goes on after the pairs that are there. The table has the mean over the seeds
with its 95 % interval (Student's t over seeds: draws of images, of heads and of views; not of test patients).
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from sscxr import fetch, tune
from sscxr.data.cache import open_cache


def auroc(job: tune.Job) -> float:
    """Of one fine-tuning, on the test patients."""
    return float(tune.classify(job).figures["auroc"]["value"])


def pair(arguments: argparse.Namespace, encoder: Path, count: int, seed: int) -> dict[str, Any]:
    """The pretrained and the untrained network, on the same images."""
    overrides = [*arguments.overrides, f"run.seed={seed}", f"classify.per_class={count}"]
    config = tune.settings(encoder, "classify", "default", overrides)
    config.classify.labels = [arguments.label]
    cache = open_cache(arguments.data)
    found: dict[str, Any] = {"per_class": count, "seed": seed}
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("pretrained", "untrained"):
            job = tune.Job(
                encoder, cache, config, Path(scratch) / name, arguments.source.split(","), name == "untrained"
            )
            found[name] = auroc(job)
    return found | {"gain": found["pretrained"] - found["untrained"]}


def interval(values: list[float]) -> str:
    """The mean, and its 95 % interval over seeds."""
    if len(values) < 2:
        return f"{fmean(values):.3f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return f"{fmean(values):.3f} +- {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--label", required=True)
    parser.add_argument("--source", required=True, help="one source, or several of one hospital")
    parser.add_argument("--per-class", default="10,20,50,100")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="settings, such as finetune.min_steps=200")
    arguments = parser.parse_intermixed_args()
    encoder = fetch.located(arguments.encoder)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    done = [json.loads(line) for line in lines]
    counts = [int(count) for count in arguments.per_class.split(",")]
    for seed in range(arguments.seeds):
        for count in counts:
            if any((one["per_class"], one["seed"]) == (count, seed) for one in done):
                continue
            done.append(pair(arguments, encoder, count, seed))
            with arguments.out.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    print("| images a class | seeds | pretrained | untrained | gain |\n|---|---|---|---|---|")
    for count in counts:
        rows = [one for one in done if one["per_class"] == count]
        cells = [interval([one[name] for one in rows]) for name in ("pretrained", "untrained", "gain")]
        print(f"| {count} | {len(rows)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
