"""What a site keeps of one attempt at a secure sum: a file of its state, for itself alone, from step to step.

An attempt is answered once and in order, each by new keys: the file names the last attempt, and an earlier one, or
one begun anew, is refused. After the last step, and when a later attempt begins, the secrets are gone.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from client.settings import SiteError
from sscxr.federation import wire
from sscxr.federation.masking import Advert, Keys
from sscxr.files import private_folder, privately, write_atomically

FILE = "masks.json"  # in the run's folder of the site's state


@dataclass(frozen=True)
class Attempt:
    """An attempt, as far as this site has answered it.

    Attributes:
        round, attempt: which one.
        step: the last step that it answered; "unmask" at the end, without secrets.
        secrets: the fields of `Keys`, in hexadecimal digits like all bytes here.
        adverts: each site's keys, its own included.
        sharers, survivors: as the server named them.
        own_shares: the shares of its own secrets that it kept.
    """

    round: int
    attempt: int
    step: str
    secrets: dict[str, str] = field(default_factory=dict)
    adverts: dict[str, str] = field(default_factory=dict)
    sharers: list[str] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)
    own_shares: str = ""

    @property
    def keys(self) -> Keys:
        """The secrets."""
        return Keys(**{name: bytes.fromhex(value) for name, value in self.secrets.items()})

    def advert(self, name: str) -> Advert:
        """Return a site's public keys, which were checked when they came."""
        return Advert.read(bytes.fromhex(self.adverts[name]))

    def write(self, folder: Path, run: str) -> None:
        """Write the attempt to a site's state; on the disk when this returns."""
        file = _file(folder, run)
        private_folder(file.parent)
        with privately():
            write_atomically(file, json.dumps(asdict(self)).encode())


def begun(folder: Path, task: wire.Task, secrets: Keys, name: str, advert: Advert) -> Attempt:
    """Return an attempt of which nothing is known but a site's own keys.

    Raises:
        SiteError: this attempt, or a later one, was begun before.
    """
    last = _read(folder, task.run)
    if (task.round, task.attempt) <= (last.round, last.attempt):
        came = f"attempt {last.attempt + 1} at round {last.round + 1} came before"
        raise SiteError("masks", f"{_name(task)} of a secure sum: {came}")
    kept = {item: value.hex() for item, value in asdict(secrets).items()}
    return Attempt(task.round, task.attempt, "keys", kept, {name: advert.to_bytes().hex()})


def after(folder: Path, task: wire.Task, step: str) -> Attempt:
    """Return the attempt that a task belongs to, which must be at this step.

    Raises:
        SiteError: the site is at another attempt or step.
    """
    state = _read(folder, task.run)
    if (state.round, state.attempt, state.step) != (task.round, task.attempt, step):
        raise SiteError(
            "masks",
            f"a step of {_name(task)} that follows {step}; this site is at {state.step} of attempt "
            f"{state.attempt + 1} at round {state.round + 1}",
        )
    return state


def _name(task: wire.Task) -> str:
    return f"attempt {task.attempt + 1} at round {task.round + 1}"


def _file(folder: Path, run: str) -> Path:
    return folder / wire.check_name(run, "run") / FILE


def _read(folder: Path, run: str) -> Attempt:
    file = _file(folder, run)
    if not file.exists():
        return Attempt(-1, -1, "none")
    try:
        found = json.loads(file.read_bytes())
        return Attempt(**{item.name: found[item.name] for item in fields(Attempt)})
    except (ValueError, LookupError, TypeError):
        raise SiteError("masks", f"{file} is damaged; find out why, then give the run a new name") from None
