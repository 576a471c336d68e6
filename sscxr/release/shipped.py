"""The encoders that come with sscxr, by name: `encoders/NAME` of the repository, each a signed release.

All are signed with the key `encoders/release.pub`. In a wheel they are the folder `sscxr/encoders`.
"""

import difflib
import re
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

import sscxr
from sscxr.errors import SscxrError
from sscxr.files import expanded
from sscxr.printable import PLAIN_NAME
from sscxr.release import card, config_file, release, signing
from sscxr.release.config_file import CONFIG, one_line

KEY = "release.pub"
_COUNT = re.compile(r"[0-9]{1,3}(,[0-9]{3})*")  # as a card shows it; smaller ones and unknown ones are words


class ShippedError(SscxrError):
    """A name is not that of a shipped encoder, or could mean two things; one line states what there is."""


def home() -> Path:
    """Return the folder of the shipped encoders: inside the package in a wheel, beside it in a clone."""
    package = Path(sscxr.__file__).parent
    inside = package / "encoders"
    return inside if inside.is_dir() else package.parent / "encoders"


def names() -> list[str]:
    """Return the names of the shipped encoders, sorted."""
    return sorted(file.parent.name for file in home().glob(f"*/{CONFIG}"))


def find(source: str, key: Ed25519PublicKey | None = None) -> Path | None:
    """Return the folder of the shipped encoder that a text names, verified; None if the text is a path.

    A folder of that name in the current one goes first, if it holds an encoder.

    Args:
        source: a name, or a path.
        key: the signature must be of this key; None: of the one that is shipped.

    Raises:
        ShippedError: neither a path here nor a shipped name; or both a shipped name and a run's folder here.
        ReleaseError, SigningError: the shipped encoder is damaged, or not signed with the key.
    """
    path, known = Path(source), names()
    if not PLAIN_NAME.fullmatch(source) or _holds_an_encoder(path):
        return None
    if source not in known:
        if path.exists():
            return None  # a checkpoint, perhaps, or something whose reader states what is wrong with it
        raise ShippedError(
            f"no encoder {source!r}: nothing here has that name, and {_instead(source, known)}"
        )
    if run := release.below(path):
        raise ShippedError(
            f"{source!r} is a shipped encoder, and a folder here that is not an encoder{run}; "
            f"give that path, or ./{source} for the folder"
        )
    return _verified(source, key)


def place(text: str) -> Path:
    """Return the folder of a shipped encoder for its name, and for any other text the path that it is.

    Raises:
        ShippedError, ReleaseError, SigningError: see `find`.
    """
    return find(text) or expanded(text)


def described(name: str) -> dict[str, Any]:
    """Describe the shipped encoder of this name, after verifying it: JSON types by name.

    Data and probes are those of its card: `images` is the sum of the counts that it shows, and
    `sites_without_count` the number of sites of which it shows none.

    Raises:
        ReleaseError, SigningError: see `find`.
    """
    folder = _verified(name)
    config, text = config_file.read(folder), release.read_card(folder)
    data = card.read_table(text, "Data")
    counts = [row.get("images", "") for row in data if _COUNT.fullmatch(row.get("images", ""))]
    ours, about = config.get("sscxr", {}), config["pretrained_cfg"]
    return {
        "name": name,
        "version": one_line(ours.get("version", "none")),
        "licence": one_line(ours.get("licence", "not stated")),
        "architecture": config["architecture"],
        "input": "x".join(map(str, about["input_size"])),
        "weights": release.stored_as(folder / release.WEIGHTS),
        "megabytes": round((folder / release.WEIGHTS).stat().st_size / 1e6, 1),
        "sites": len(data),
        "images": sum(int(count.replace(",", "")) for count in counts),
        "sites_without_count": len(data) - len(counts),
        "data_licences": sorted({row.get("licences", "not stated") for row in data}),
        "probes": card.read_table(text, "Probes"),
        "folder": str(folder),
    }


def _holds_an_encoder(path: Path) -> bool:
    return any((path / file).is_file() for file in (release.WEIGHTS, CONFIG, signing.SUMS))


def _instead(name: str, known: list[str]) -> str:
    """Return what there is in place of an unknown name."""
    if not known:
        return "this sscxr ships none; give a folder, or an address (https, hf)"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "give one of them, a folder or an address (https, hf)"
    return f"the shipped ones are: {', '.join(known)}; {hint}"


def _verified(name: str, key: Ed25519PublicKey | None = None) -> Path:
    folder = home() / name
    release.verify(folder, key or signing.read_public(home() / KEY))
    return folder
