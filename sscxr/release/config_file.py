"""A release's config.json: the form that it must have, and the number of the format that it is written in.

The number is `sscxr.format` in the file, a whole number that grows by one when an sscxr before the change could not
load what comes after it. A release that has none is of format 1: it was written before releases had numbers.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm

from sscxr import __version__
from sscxr.errors import SscxrError
from sscxr.models.encoder import POOLINGS

CONFIG = "config.json"
FORMAT = 1  # that this sscxr writes; it loads this one and all before it
# Whole numbers in a release's model_args, lowest and highest; beside them it has `pooling_args` and nothing else.
ARGS = {"img_size": (8, 4096), "patch_size": (1, 512), "in_chans": (1, 3), "depth": (1, 256)}


class ReleaseError(SscxrError):
    """A folder is not a released encoder, or an encoder cannot be released; one line states why."""


def read(folder: Path) -> dict[str, Any]:
    """Return the content of config.json, checked to have the form that `release.write_encoder` gives it.

    Raises:
        ReleaseError: it has another form, or is of a later format.
    """
    refuse_later(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        about = config["pretrained_cfg"]
        means, stds = ([float(value) for value in about[name]] for name in ("mean", "std"))
        sizes = [int(side) for side in about["input_size"]]
        well = isinstance(config["architecture"], str) and isinstance(config.get("sscxr", {}), dict)
        well &= all(map(math.isfinite, means)) and all(0 < value < math.inf for value in stds)
        well &= bool(means) and bool(stds) and len(sizes) == 3 and _format_of(config) is not None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ReleaseError(f"{folder / CONFIG} is not that of a released encoder ({error!r})") from None
    if not well:
        raise ReleaseError(f"{folder / CONFIG} is not that of a released encoder")
    return cast(dict[str, Any], config)


def refuse_later(folder: Path) -> None:
    """Refuse a release of a later format, whatever else is in it; a config that is not readable is left to `read`.

    Raises:
        ReleaseError: the format's number is above `FORMAT`; the line names the sscxr that wrote it.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    number = _format_of(config)
    if number is not None and number > FORMAT:
        writer = one_line(config["sscxr"].get("code_version", "of a later version"))[:40]
        raise ReleaseError(
            f"{folder} is a release of format {str(number)[:20]}, and this sscxr {__version__} loads formats up to "
            f"{FORMAT}: install sscxr {writer}, which wrote it, or a later one"
        )


def _format_of(config: Any) -> int | None:
    """Return the number of a config's format; None if what is there is not one."""
    ours = config.get("sscxr", {}) if isinstance(config, dict) else None
    number = ours.get("format", 1) if isinstance(ours, dict) else None
    return number if isinstance(number, int) and not isinstance(number, bool) and number >= 1 else None


def checked_args(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that build a release's encoder, each checked to be one that it may have.

    Raises:
        ReleaseError: another argument, a value out of its range, or a model that timm does not know.
    """
    args = config.get("model_args")
    if not isinstance(args, dict):
        raise ReleaseError(f"{folder / CONFIG} is not that of a released encoder: it has no model_args")
    if not timm.is_model(config["architecture"]):
        raise ReleaseError(f"{folder / CONFIG}: timm has no model {one_line(config['architecture'])[:80]!r}")
    for name, value in args.items():
        low, high = ARGS.get(name, (1, 0))
        whole = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        pools = (name == "global_pool" and value in POOLINGS) or (name == "fc_norm" and value is False)
        if not (whole or pools or (name, value) == ("depth", None)):
            raise ReleaseError(
                f"{folder / CONFIG}: model_args has {one_line(name)[:40]}={one_line(repr(value))[:40]}, "
                "which no release has; it is refused"
            )
    return args


def one_line(text: object) -> str:
    """Return a text on one line, without unprintable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
