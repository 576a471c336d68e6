"""The model card of a released encoder: what it learned from, how, how well, and what it is not for."""

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
    """What one site trained on.

    Attributes:
        site: its name.
        images, patients: counts; None where the site did not tell.
        licences: of its images, as their manifests state them.
    """

    site: str
    images: int | None
    patients: int | None = None
    licences: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """What the model card says.

    Attributes:
        name: of the run.
        data: one entry a site.
        rounds: federated rounds that the encoder has seen.
        settings: the resolved settings as YAML text.
        code_version: of sscxr.
        made: how the encoder came to be, see `runs.Words`.
        probes: against the untrained encoder; empty where there were no labels.
        min_cell: counts below it are not told.
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
    """True where a licence's text says NC or non-commercial."""
    return bool(_NON_COMMERCIAL.search(licence))


def count(number: int | None, min_cell: int) -> str:
    """A count as it may be told: "<10" below the minimum cell, "not told" where it is unknown."""
    if number is None:
        return "not told"
    return f"<{min_cell}" if number < min_cell else f"{number:,}"


def render(card: Card, config: Mapping[str, Any]) -> str:
    """The card as Markdown; names and licences are escaped, since sites choose them.

    Args:
        card: the facts.
        config: timm's config.json, for the input's size and normalisation.
    """
    sections = [_head(card, config), _data(card), _recipe(card), _probes(card), _LIMITS]
    return "\n\n".join(sections) + "\n"


def released(text: str, *, version: str, licence: str) -> str:
    """The card of a run's encoder as that of a release: with its version, licence, and how to check it.

    Raises:
        SscxrError: a text that is no card of ours.
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
{card.made} at {len(card.data)} sites in {card.rounds} federated rounds. No image left a
site. Code: sscxr {escape(card.code_version)}.

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
            "weights trained on such images may be used commercially is for whoever uses them to settle.",
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
    """Text on one line, as Markdown and HTML show it literally."""
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def interval(value: float, low: float, high: float, *, sign: str = "") -> str:
    """A figure and its interval: "0.912 (0.874 to 0.945)"."""
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]
