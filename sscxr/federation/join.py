"""The join file, in which a coordinator describes a federation to a hospital before it connects.

It is YAML and contains no secret. `sscxr join` writes it; `sscxr site init` and `sscxr doctor` read it.
"""

import datetime
import json
import platform
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from textwrap import indent
from typing import Any

from omegaconf import MISSING

from sscxr import __version__
from sscxr.config import yaml_text
from sscxr.errors import SscxrError
from sscxr.printable import PLAIN_NAME

PROBE = "/v1/probe"  # in deploy/nginx.conf: GET sends, POST accepts incompressible bytes
PACKAGES = ("python", "sscxr", "flwr", "torch", "timm")  # whose versions a site compares with its own

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
_PATH = re.compile(r"/[A-Za-z0-9._/-]*")


def installed() -> dict[str, str]:
    """Return `PACKAGES` -> installed version."""
    packages = {name: metadata.version(name) for name in ("flwr", "torch", "timm")}
    return {"python": platform.python_version(), "sscxr": __version__} | packages


class JoinError(SscxrError):
    """An invalid join file; one line states what is wrong."""


@dataclass
class Payload:
    """The data that one round transfers between the server and one site.

    Attributes:
        up_mb, down_mb: MB (10^6 bytes): the update to the server, the encoder to the site.
    """

    up_mb: float = MISSING
    down_mb: float = MISSING


@dataclass
class Join:
    """The content of `join.yaml`.

    Attributes:
        federation: its name.
        superlink: "host:port" that SuperNodes connect to.
        ca: PEM text of the CA that signed the server's certificate; empty: one that is publicly trusted.
        versions: `PACKAGES` -> the coordinator's version.
        fingerprint: `wire.fingerprint` of the recipe.
        recipe: YAML text of what the sites will run: the recipe's sections and its threads.
        payload: of one round.
        deadline_s: seconds that a site has for a round, transfers included.
        memory_gb: GB (10^9 bytes) that training takes at a site, roughly.
        probe: path of the bandwidth probe at `superlink`.
        issued: ISO date.
    """

    federation: str = MISSING
    superlink: str = MISSING
    ca: str = MISSING
    versions: dict[str, str] = MISSING
    fingerprint: str = MISSING
    recipe: str = MISSING
    payload: Payload = MISSING
    deadline_s: float = MISSING
    memory_gb: float = MISSING
    probe: str = MISSING
    issued: str = MISSING

    @property
    def host(self) -> str:
        """The SuperLink's host, without the brackets of an IPv6 address."""
        return self.superlink.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The SuperLink's port."""
        return int(self.superlink.rpartition(":")[2])

    @staticmethod
    def read(file: str | Path) -> "Join":
        """Read and check a join file.

        Raises:
            JoinError: the file is unreadable, a key is missing or unknown, or a value is invalid.
        """
        file = Path(file)
        try:
            if file.stat().st_size > yaml_text.MOST_BYTES:
                raise JoinError(f"{file}: {file.stat().st_size} bytes are too many for a join file")
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text"
            raise JoinError(f"{file}: {reason}") from None
        join = _parsed(file, text)
        problem = _problem(join)
        if problem:
            raise JoinError(f"{file}: {problem}; ask the coordinator for a new join file")
        return join

    def write(self, file: str | Path) -> None:
        """Write the join file.

        Raises:
            JoinError: a value is invalid.
        """
        problem = _problem(self)
        if problem:
            raise JoinError(f"{file}: not written: {problem}")
        Path(file).write_text(self._text(), encoding="utf-8")

    def _text(self) -> str:
        versions = "".join(f"  {name}: {json.dumps(self.versions[name])}\n" for name in PACKAGES)
        return (
            "# What a hospital needs to join this federation. Issued by its coordinator; it contains no secret.\n"
            f"federation: {json.dumps(self.federation)}\n"
            f"issued: {json.dumps(self.issued)}\n"
            f"superlink: {json.dumps(self.superlink)}\n"
            f"probe: {json.dumps(self.probe)}  # for the bandwidth, at the same address\n"
            "payload:  # MB per round\n"
            f"  up_mb: {float(self.payload.up_mb)}\n"
            f"  down_mb: {float(self.payload.down_mb)}\n"
            f"deadline_s: {float(self.deadline_s)}  # seconds for a round, transfers included\n"
            f"memory_gb: {float(self.memory_gb)}  # for training, roughly\n"
            f"versions:  # the coordinator's\n{versions}"
            f"{_block('fingerprint', self.fingerprint)}"
            f"{_block('ca', self.ca)}"
            f"{_block('recipe', self.recipe)}"
        )


def _block(name: str, text: str) -> str:
    return f"{name}: |\n{indent(text.strip(), '  ')}\n" if text.strip() else f'{name}: ""\n'


def _parsed(file: Path, text: str) -> Join:
    try:
        join = yaml_text.load(Join, text, foreign=True)
    except yaml_text.YamlError as error:
        raise JoinError(f"{file}: not a join file: {error}") from None
    for name in ("ca", "fingerprint", "recipe"):
        setattr(join, name, getattr(join, name).strip())
    return join


def _problem(join: Join) -> str:
    """Return what is wrong with the first invalid value; empty if all are valid."""
    address = _ADDRESS.fullmatch(join.superlink)
    numbers = {"payload.up_mb": join.payload.up_mb, "payload.down_mb": join.payload.down_mb}
    numbers |= {"deadline_s": join.deadline_s, "memory_gb": join.memory_gb}
    wrong = [f"{name}={value}" for name, value in numbers.items() if not 0 <= value <= 1e9]
    if not PLAIN_NAME.fullmatch(join.federation):
        return f"federation {join.federation[:80]!r} is not a plain name (letters, digits, dots, dashes)"
    if not address or not 0 < int(address["port"]) < 2**16:
        return f"superlink {join.superlink[:80]!r} is not host:port"
    if set(join.versions) != set(PACKAGES):
        return (
            f"versions are of {', '.join(sorted(join.versions)) or 'nothing'}, expected {', '.join(PACKAGES)}"
        )
    if wrong or not join.deadline_s:
        return f"{', '.join(wrong) or 'deadline_s=0'} is out of range"
    if not _PATH.fullmatch(join.probe):
        return f"probe {join.probe[:80]!r} is not a path"
    return _problem_of_texts(join)


def _problem_of_texts(join: Join) -> str:
    try:
        datetime.date.fromisoformat(join.issued)
    except ValueError:
        return f"issued {join.issued[:80]!r} is not an ISO date"
    if not isinstance(_mapping(join.fingerprint), Mapping):
        return "the fingerprint is not a JSON object"
    try:
        recipe = yaml_text.parse_foreign(join.recipe)
    except yaml_text.YamlError:
        recipe = []
    if not isinstance(recipe, dict) or not all(isinstance(section, dict) for section in recipe.values()):
        return "the recipe is not YAML of settings"
    if join.ca:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=join.ca)
        except (ssl.SSLError, ValueError, TypeError):  # TypeError: text that is not ASCII
            return "the CA is not a PEM certificate, or has non-ASCII characters beside it"
    return ""


def _mapping(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
