"""The card of a fine-tuned model: its task, training data, figures and limits."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from sscxr import config as configs
from sscxr.config import Config
from sscxr.finetuning import KINDS
from sscxr.finetuning.finetune import History, Split
from sscxr.finetuning.finetuned import Spec
from sscxr.release.card import count, escape, interval, non_commercial


def render(
    spec: Spec,
    config: Config,
    index: pd.DataFrame,
    parts: Split,
    history: History,
    figures: Mapping[str, Any],
) -> str:
    """Return the card as Markdown.

    Args:
        spec, config: the model and its settings.
        index: the cache's.
        parts: the rows for training, validation and testing.
        history: of its training.
        figures: of its evaluation on `parts.test`; empty: none.
    """
    sections = [
        _head(spec),
        _data(config, index, parts),
        _figures(figures, KINDS[spec.task].shown, config.privacy.min_cell),
        _recipe(config, history),
        _LIMITS,
    ]
    return "\n\n".join(sections) + "\n"


def _head(spec: Spec) -> str:
    labels, kind = ", ".join(escape(label) for label in spec.labels), KINDS[spec.task]
    origin = (
        f"It began from a pretrained encoder whose `model.safetensors` has the SHA-256 `{spec.encoder_sha256}`."
        if spec.encoder_sha256
        else "It began untrained, as a baseline."
    )
    return f"""# A chest X-ray {kind.noun}: {labels}

{kind.verb} {labels} in frontal chest X-rays. `{spec.architecture}` at {spec.img_size} px. {origin} Code: sscxr
{escape(spec.code_version)}.

`sscxr evaluate THIS_FOLDER --data CACHE` judges it on other data;
`sscxr.finetuning.finetuned.load(THIS_FOLDER)` loads it."""


def _data(config: Config, index: pd.DataFrame, parts: Split) -> str:
    least = config.privacy.min_cell
    lines = ["| source | part | images | patients | licences |", "| --- | --- | ---: | ---: | --- |"]
    restricted = False
    for part, rows in (("training", parts.train), ("validation", parts.val), ("test", parts.test)):
        for source, found in index.iloc[rows].groupby("source"):
            licences = sorted({text for text in found["licence"] if text.strip()})
            restricted |= part != "test" and any(non_commercial(text) for text in licences)
            cells = [
                escape(str(source)),
                part,
                count(len(found), least),
                count(found["group"].nunique(), least),
                ", ".join(escape(text) for text in licences) or "not stated",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    if restricted:
        lines += [
            "",
            "**Some of the images are under a NON-COMMERCIAL licence.** Whether the weights may be used "
            "commercially is for their user to decide.",
        ]
    return "\n".join(["## Data", "", *lines, "", "No patient is in two parts."])


def _figures(figures: Mapping[str, Any], shown: Collection[str], min_cell: int) -> str:
    if not figures:
        return "## Figures\n\nNone: no patients were set aside for testing."
    lines = ["| figure | value (95 % interval) | images |", "| --- | ---: | ---: |"]
    for name, figure in figures.items():
        if name.partition(":")[0] in shown and figure["value"] is not None:
            low, high = figure["low"], figure["high"]
            value = f"{figure['value']:.3f}" if low is None else interval(figure["value"], low, high)
            lines.append(f"| {escape(name)} | {value} | {count(figure['n'], min_cell)} |")
    at = figures.get("at_specificity")
    chosen = (
        f" Sensitivity is given at a specificity of {at:g} or more, chosen on these images." if at else ""
    )
    tested = f"On test patients that it has not seen; intervals by bootstrap over patients.{chosen}"
    return "\n".join(
        ["## Figures", "", tested, "", *lines, "", "By source, view, sex and age: `evaluation.json`."]
    )


def _recipe(config: Config, history: History) -> str:
    best = history.epochs[history.best - 1]
    kept = ""
    if not math.isnan(best.score):
        kept = f"; number {history.best} is kept (validation score {best.score:.3f})"
    text = configs.dumps(config).strip()
    head = f"{len(history.epochs)} passes over the training images of at most {history.planned}{kept}."
    return f"## Recipe\n\n{head}\n\n```yaml\n{text}\n```"


_LIMITS = """## Limits

For research only: not a medical device, and not to be used to diagnose, treat or triage anyone. The figures speak
for the sources, scanners, ages and labels above and for no others; some labels are mined from reports. Test it on
your own patients. Weights can reveal something of the images they were trained on; no formal privacy guarantee is
given. `trained_on.csv` (salted hashes) stays at the site."""
