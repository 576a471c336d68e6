"""The model card of a released encoder: its data, recipe, probes and limits."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sscxr.errors import SscxrError
from sscxr.evaluation.gains import Comparison
from sscxr.runs import natural

_NON_COMMERCIAL = re.compile(r"(?<![a-z])nc(?![a-z])|non[-\s]?commercial", re.IGNORECASE)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~-])")
_POOLED = {
    "avg": ("mean of the patch tokens", "The class token was not trained: pool the patches."),
    "token": ("class token", "The class token was trained: it is what the encoder returns."),
}


@dataclass(frozen=True)
class SiteData:
    """The data that one site trained on.

    Attributes:
        site: its name.
        images, patients: counts; None if the site did not report them.
        licences: of its images, as their manifests state them.
    """

    site: str
    images: int | None
    patients: int | None = None
    licences: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """The contents of a model card.

    Attributes:
        name: of the run.
        data: one entry per site.
        rounds: federated rounds that the encoder has seen.
        settings: the resolved settings as YAML.
        code_version: of sscxr.
        made: how the encoder was made, see `runs.Words`.
        probes: against the untrained encoder; empty without labels.
        min_cell: counts below it are not shown.
        notes: further lines, such as sites that were absent.
    """

    name: str
    data: Sequence[SiteData]
    rounds: int
    settings: str
    code_version: str
    made: str = "trained"
    probes: Sequence[Comparison] = ()
    min_cell: int = 10
    notes: Sequence[str] = ()


def non_commercial(licence: str) -> bool:
    """Return whether a licence's text has NC or non-commercial in it."""
    return bool(_NON_COMMERCIAL.search(licence))


def count(number: int | None, min_cell: int) -> str:
    """Return a count as it may be shown: "<10" below the minimum cell, "not reported" if it is unknown."""
    if number is None:
        return "not reported"
    return f"<{min_cell}" if number < min_cell else f"{number:,}"


def render(card: Card, config: Mapping[str, Any]) -> str:
    """Return the card as Markdown; names and licences are escaped, since sites choose them.

    Args:
        card: the facts.
        config: timm's config.json, for the input's size and normalisation.
    """
    sections = [_head(card, config), _data(card), _recipe(card), _probes(card), _LIMITS]
    return "\n\n".join(sections) + "\n"


def released(text: str, *, version: str, licence: str) -> str:
    """Add a release's version, licence and check to the card of a run's encoder.

    Raises:
        SscxrError: the text is not the card that the run wrote.
    """
    before, limits, after = text.partition("\n## Limits\n")
    if not limits:
        raise SscxrError("the model card has no section 'Limits': it is not the card that the run wrote")
    section = f"""
## Release

Version {escape(version)}. Licence of the weights: {escape(licence)}; the images' own are listed above.

`sha256sum -c SHA256SUMS` shows damage. A release that was signed has `SHA256SUMS.sig`, which shows whose it is:
`sscxr encoder pull FOLDER_OR_URL --key KEY.pub`, with a key that reached you by another way.
"""
    return before + section + limits + after


def _where(card: Card) -> str:
    if len(card.data) == 1:
        return f"at one site, without others, in {card.rounds} rounds."
    return f"at {len(card.data)} sites in {card.rounds} federated rounds. No image left a site."


def _head(card: Card, config: Mapping[str, Any]) -> str:
    channels, height, width = config["pretrained_cfg"]["input_size"]
    mean, std = config["pretrained_cfg"]["mean"][0], config["pretrained_cfg"]["std"][0]
    feature, advice = _POOLED[config["global_pool"]]
    return f"""---
library_name: timm
tags: [chest-x-ray, self-supervised, federated-learning, image-feature-extraction]
license: other
---

# {escape(card.name)}: a chest X-ray encoder

A vision transformer (`{config["architecture"]}`, {config["num_features"]} features)
{card.made} {_where(card)}
Code: sscxr {escape(card.code_version)}.

## Use

```python
import timm, torch

encoder = timm.create_model("local-dir:PATH_OF_THIS_FOLDER", pretrained=True).eval()
grey = torch.rand(1, {channels}, {height}, {width})     # grey levels 0..1, white is dense, padded to a square
features = encoder((grey - {mean}) / {std})   # [1, {config["num_features"]}]: {feature}
```

`num_classes=N` adds a classifier to be fine-tuned. {advice}"""


def _data(card: Card) -> str:
    rows = []
    for site in sorted(card.data, key=lambda one: natural(one.site)):
        licences = ", ".join(
            escape(text) + (" **(NON-COMMERCIAL)**" if non_commercial(text) else "")
            for text in sorted(set(site.licences))
            if text.strip()
        )
        rows.append(
            [
                escape(site.site),
                count(site.images, card.min_cell),
                count(site.patients, card.min_cell),
                licences or "not stated",
            ]
        )
    restricted = [s.site for s in card.data if any(non_commercial(text) for text in s.licences)]
    lines = ["## Data", "", *_table(["site", "images", "patients", "licences"], rows, right=(1, 2))]
    if restricted:
        lines += [
            "",
            f"**{len(restricted)} of {len(card.data)} sites hold images under a NON-COMMERCIAL licence.** Whether "
            "weights trained on such images may be used commercially is for their user to decide.",
        ]
    lines += ["", *(f"- {escape(note)}" for note in card.notes)]
    return "\n".join(lines).rstrip()


def _recipe(card: Card) -> str:
    settings = card.settings.strip()
    runs = re.findall(r"`+", settings)
    fence = "`" * max(3, 1 + max(map(len, runs), default=0))
    return f"## Recipe\n\n{card.rounds} rounds at {len(card.data)} sites.\n\n{fence}yaml\n{settings}\n{fence}"


def _probes(card: Card) -> str:
    if not card.probes:
        return "## Probes\n\nNone: no site had enough labels on patients that were set aside."
    rows = [
        [
            escape(pair.trained.label),
            escape(pair.trained.cohort),
            pair.trained.kind,
            interval(pair.trained.auroc, pair.trained.low, pair.trained.high),
            interval(pair.untrained.auroc, pair.untrained.low, pair.untrained.high),
            interval(pair.gain, pair.low, pair.high, sign="+"),
            count(pair.trained.test_patients, card.min_cell),
        ]
        for pair in card.probes
    ]
    header = ["label", "cohort", "probe", "AUROC", "untrained", "gain", "test patients"]
    return "\n".join(
        [
            "## Probes",
            "",
            "Frozen features, fitted on training patients and tested on patients that neither pretraining nor the "
            "probe has seen; 95 % intervals by bootstrap over patients. The gain is over the same encoder "
            "untrained, on the same resamples.",
            "",
            *_table(header, rows, right=(6,)),
        ]
    )


_LIMITS = """## Limits

For research only: not a medical device, and not to be used to diagnose, treat or triage anyone. The probes speak
for the sites, scanners, ages and labels listed above and for no others; some labels are mined from reports.
Test it on your own patients. Updates and weights can reveal something of the images they were trained on; no
formal privacy guarantee is given."""


def escape(text: str) -> str:
    """Return a text on one line, escaped so that Markdown and HTML show it literally."""
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def interval(value: float, low: float, high: float, *, sign: str = "") -> str:
    """Return a figure and its interval: "0.912 (0.874 to 0.945)"."""
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]
