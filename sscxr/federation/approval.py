"""A hospital's approval of a recipe before a run may train there: the recipe in words, and its hash.

The hash covers everything that decides what an update contains and what is reported beside it. `sscxr site
approve` writes it to `site.yaml`; a run with another hash is refused. This module is in the installed package,
not in the app that a coordinator sends with each run.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sscxr import config as configs
from sscxr.config import Config, ConfigError, yaml_text
from sscxr.config.schema import MIXED_IMAGES
from sscxr.errors import SscxrError
from sscxr.federation import floors

# Beside the recipe: settings for how many images an update mixes, how many bits it has, and what is counted.
_FEDERATION = (
    *("rounds", "local_epochs", "uplink", "downlink", "share_head", "sends", "moments", "align"),
    *("max_images", "evaluate_every", "secure", "threshold", "members"),
)
_PRIVACY = ("min_cell",)


_KEY = re.compile(r"^approved[ \t]*:[ \t]*(?P<value>[^#\n]*?)(?P<comment>[ \t]*#[^\n]*)?$", re.MULTILINE)
_NONE = ("", "[]", "null", "~")


class NotApprovedError(SscxrError):
    """This site has not approved the recipe; one line names what differs."""


@dataclass(frozen=True)
class Word:
    """A line that describes a recipe.

    Attributes:
        what, value: such as "batch" and "64 images a step".
        mark: why a hospital should look twice; empty if the value is usual.
    """

    what: str
    value: str
    mark: str = ""


def terms(config: Config) -> dict[str, Any]:
    """Return the settings to approve, by section: the recipe's, and the federation's that affect privacy."""
    whole = configs.as_dict(config)
    recipe = configs.recipe(config)
    return recipe | {
        "federation": {name: whole["federation"][name] for name in _FEDERATION},
        "privacy": recipe["privacy"] | {name: whole["privacy"][name] for name in _PRIVACY},
    }


def digest(config: Config) -> str:
    """Return 64 hex digits, the SHA-256 of the `terms`."""
    return hashlib.sha256(json.dumps(terms(config), sort_keys=True).encode()).hexdigest()


def settings_of(text: str) -> Config:
    """Read settings from the YAML text of `terms`, with defaults for all others.

    Raises:
        ConfigError: a setting is unknown, missing or out of range.
    """
    config = configs.loads(text, partial=True)
    missing = _missing(text, terms(config))
    if missing:
        raise ConfigError(f"settings without a value: {', '.join(missing[:5])}; ask for a newer join file")
    return config


def _missing(text: str, wanted: Mapping[str, Any]) -> list[str]:
    there: Any = yaml_text.typed(yaml_text.parse_foreign(text), Config)
    return [
        f"{section}.{name}"
        for section, settings in wanted.items()
        for name in settings
        if name not in (there.get(section) or {})
    ]


def check(config: Config, approved: Iterable[str], known: Config | None) -> None:
    """Check that a recipe has been approved.

    Args:
        approved: digests.
        known: a recipe to compare with, to name what differs; None if unknown.

    Raises:
        NotApprovedError: it has not been approved.
    """
    own = digest(config)
    if own in approved:
        return
    line = f"the run's recipe ({own[:12]}) is not among those that site.yaml approves"
    if known is not None and digest(known) in approved:
        differ = differing(terms(known), terms(config))
        raise NotApprovedError(f"{line}; it differs from the approved one in {', '.join(differ)}")
    raise NotApprovedError(f"{line}; review the join file with `sscxr site approve join.yaml`")


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of the settings at which two recipes' terms differ."""
    return [
        f"{section}.{name}"
        for section in sorted(one.keys() | other.keys())
        for name in sorted(one.get(section, {}).keys() | other.get(section, {}).keys())
        if one.get(section, {}).get(name) != other.get(section, {}).get(name)
    ]


def words(config: Config, learns: str) -> Iterator[Word]:
    """Describe a recipe for the hospital that decides on it; `learns`: see `Stage.learns`."""
    federation, encoder = config.federation, config.encoder
    pretrains, learning = config.pretrains, config.learning
    yield Word("learns", learns)
    size = (0 if pretrains else config.finetune.img_size) or encoder.img_size
    grid = size // encoder.patch_size
    yield Word(
        "model",
        f"{encoder.name}, {encoder.depth or 'all'} blocks; images of {size} px in {grid} x {grid} patches of "
        f"{encoder.patch_size} px",
        "" if grid >= 8 else "few patches an image: fewer than 8 x 8",
    )
    yield Word("starts from", str(encoder.start or "random weights"))
    gradients = federation.sends == "gradients"
    batch = learning.batch_size
    if gradients:
        yield Word(
            "a step",
            "is a round's: its gradient leaves",
            "it shows more than an update of many steps",
        )
    else:
        small = "" if batch >= 2 * MIXED_IMAGES else "a small batch: fewer than 16"
        yield Word("a step", f"mixes {batch} images", small)
    local = federation.local_epochs
    yield Word(
        "a round",
        f"passes {local:g} times over the images"
        if local >= 1
        else f"uses {local:g} of the images, at least a step",
        "" if local >= 0.25 else "few images an update: less than a quarter of them",
    )
    yield Word("rounds", f"{federation.rounds}, an update in each")
    yield Word(
        "rate",
        f"lr {learning.lr:g} to {learning.min_lr:g}, betas {learning.betas}, "
        f"gradient norm at most {learning.clip:g}",
        ""
        if learning.lr <= 0.01 and 0.1 <= learning.clip <= 10
        else "a rate above 0.01, or a bound outside 0.1 to 10",
    )
    shared = not pretrains if federation.share_head is None else federation.share_head
    yield Word(
        "leaves",
        f"the encoder's {'gradient' if gradients else 'update'}"
        + (" and that of the head" if shared else "")
        + ("" if config.moments == "local" else f", with the optimiser's moments ({config.moments})"),
        "the reconstruction head's update leaves too" if shared and pretrains else "",
    )
    yield Word(
        "sent in",
        f"{federation.uplink}, received in {federation.downlink}",
        "updates of full precision reveal the most" if federation.uplink == "fp32" else "",
    )
    yield from _sum(config)
    yield _privacy(config)
    every = federation.evaluate_every
    yield Word("is evaluated", f"every {every} rounds" if every else "never")
    cell = config.privacy.min_cell
    yield Word(
        "smallest count", f"{cell}, or this site's own where it is larger", "below 10" if cell < 10 else ""
    )
    share = config.data.test_share
    yield Word(
        "set aside",
        f"{share:.0%} of the patients, for tests",
        "" if 0.1 <= share <= 0.3 else "usual: 10 to 30 %",
    )
    yield Word("laterals", "used" if config.data.laterals else "left out")
    if pretrains:
        yield from _method(config)


def _sum(config: Config) -> Iterator[Word]:
    federation = config.federation
    if not federation.secure:
        yield Word("is seen by", "the coordinator: each site's own update")
        return
    yield Word(
        "is summed",
        f"under masks, with at least {floors.threshold(federation)} of {len(federation.members)} members; check "
        "each fingerprint with that hospital, not with the coordinator",
    )
    for name, fingerprint in sorted(federation.members.items()):
        yield Word("member", f"{name} {fingerprint}")


def _privacy(config: Config) -> Word:
    asked = config.privacy
    if not asked.noise:
        return Word("privacy", "no noise: not differentially private")
    return Word(
        "privacy",
        f"noise {asked.noise:g} x {asked.clip:g}, the largest norm of a patient's gradient; at most "
        f"{asked.per_patient} images of a patient a step (`privacy` in site.yaml bounds what it costs)",
    )


def _method(config: Config) -> Iterator[Word]:
    name, crops = config.pretrain.objective, config.augment.crop_scale
    yield Word(name, ", ".join(f"{key} {value}" for key, value in asdict(config.section(name)).items()))
    yield Word(
        "crops",
        f"{crops[0]:g} to {crops[1]:g} of the area",
        "" if crops[0] >= 0.2 else "small parts of an image",
    )


def pinned(text: str, hexadecimal: str, note: str) -> str:
    """Return a `site.yaml` with one more approved digest and all other lines, comments included, unchanged.

    Args:
        note: a comment after the digest, such as the federation's name and the date.

    Raises:
        ConfigError: the list is written in a form that cannot be extended.
    """
    item = f"  - {hexadecimal}  # {note}\n"
    found = _KEY.search(text)
    if not found:
        return f"{text.rstrip()}\n\napproved:\n{item}"
    value = found["value"].strip()
    if value.startswith("[") and value.endswith("]"):
        others = "".join(f"  - {one.strip()}\n" for one in value[1:-1].split(",") if one.strip())
    elif value in _NONE:
        others = ""
    else:
        raise ConfigError("approved is not a list of lines; write it as `approved: []`, and approve again")
    comment = f"  {found['comment'].strip()}" if found["comment"] else ""
    head = f"{text[: found.start()]}approved:{comment}\n{others}"
    rest = text[found.end() :].removeprefix("\n")
    indent = re.match(r"(?:[ \t]*(?:#[^\n]*)?\n)*([ \t]*)- ", rest)
    if indent:  # like the existing lines
        item = indent[1] + item.lstrip()
    return head + item + rest
