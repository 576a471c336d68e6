"""What this site's training with differential privacy has cost its patients, and the most that it may.

There is one budget for the cache, of all runs and stages together: `privacy` in `site.yaml`. Each update is
charged in a file of the site's state before it leaves, whether it arrives or not, and for ever: a repeated round is
charged again. The file is read and extended under a lock, and a charge is on the disk before the reply is made: a
process that is killed has charged too much, never too little. A file that is damaged refuses all further training.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from client.sent import now
from client.settings import SiteError, SiteSettings
from sscxr.config import Config
from sscxr.federation import wire
from sscxr.federation.accounting import Charge, epsilon
from sscxr.files import locked, private_folder

if TYPE_CHECKING:
    from sscxr.training.private import Privacy

FILE = "_privacy.jsonl"  # cannot be a run's folder
_LOCK = "_privacy.lock"


@dataclass(frozen=True)
class Spent:
    """An update that was charged.

    Attributes:
        time: UTC, to the second.
        run, stage, round, attempt: of the task; the round counts from 0.
        noise, rate, steps: see `Charge`.
    """

    time: str
    run: str
    stage: str
    round: int
    attempt: int
    noise: float
    rate: float
    steps: int

    @property
    def charge(self) -> Charge:
        """What it cost."""
        return Charge(self.noise, self.rate, self.steps)


def terms(settings: SiteSettings, config: Config) -> "Privacy | None":
    """Return how a run trains here; None: without differential privacy.

    Raises:
        SiteError: the site has not stated a number of patients.
    """
    asked, own = config.privacy, settings.privacy
    if not asked.noise:
        return None
    if not own.patients:
        raise SiteError(
            "settings",
            f"the run asks for differential privacy (privacy.noise={asked.noise:g}): set privacy.patients in "
            "site.yaml to about how many patients this site trains on, a number that may be known",
        )
    # Imported here, as below: `sscxr site log` does not need torch.
    from sscxr.training.private import Privacy

    return Privacy(max(asked.noise, own.noise), asked.clip, own.patients, asked.per_patient)


def charge_of(privacy: "Privacy", config: Config, *rounds: int) -> list[Charge]:
    """Return what these rounds of a run cost, an entry each."""
    from sscxr.training.batches import round_of

    found = []
    for number in rounds:
        size, steps = round_of(config, privacy.patients, number)
        found.append(Charge(privacy.noise, privacy.rate(size), len(steps)))
    return found


def read(folder: Path) -> list[Spent]:
    """Return what was charged so far, the oldest first.

    Raises:
        SiteError: a line is damaged; but the last one may be unfinished, since its update did not leave.
    """
    file = folder / FILE
    text = file.read_bytes() if file.exists() else b""
    found = []
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), 1):
        try:
            spent = Spent(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            spent = None
        if spent is None or not _is_sound(spent):
            raise SiteError(
                "privacy",
                f"{file}, line {number}: damaged, so what was spent is not known; restore the file from a copy",
            )
        found.append(spent)
    return found


def _is_sound(spent: Spent) -> bool:
    if not all(type(getattr(spent, item.name)) is item.type for item in fields(Spent)):
        return False
    return spent.noise > 0 and 0 < spent.rate <= 1 and spent.steps >= 1


def check(settings: SiteSettings, wanted: Sequence[Charge]) -> None:
    """Check that the site's budget allows further steps.

    Raises:
        SiteError: it does not, or what was spent cannot be read.
    """
    _check(settings, [spent.charge for spent in read(Path(settings.state))], wanted)


def _check(settings: SiteSettings, before: Sequence[Charge], wanted: Sequence[Charge]) -> None:
    most, delta = settings.privacy.epsilon, settings.privacy.delta
    if not most:
        return
    after = epsilon([*before, *wanted], delta)
    if after > most:
        raise SiteError(
            "privacy",
            f"this would bring epsilon to {after:.3g} at delta {delta:g}, of which {epsilon(before, delta):.3g} is "
            f"spent; site.yaml allows privacy.epsilon={most:g} for all runs together",
        )


def spend(settings: SiteSettings, task: wire.Task, config: Config, charge: Charge) -> float:
    """Charge an update, on the disk when this returns; return the epsilon of the run so far.

    Raises:
        SiteError: the budget does not allow it.
        OSError: it could not be written, so the update must not leave.
    """
    folder, stage = Path(settings.state), config.run.stage
    line = Spent(now(), task.run, stage, task.round, task.attempt, charge.noise, charge.rate, charge.steps)
    private_folder(folder)
    with locked(folder / _LOCK):
        before = read(folder)
        _check(settings, [spent.charge for spent in before], [charge])
        with _opened(folder / FILE) as handle:
            os.write(handle, json.dumps(asdict(line), sort_keys=True).encode() + b"\n")
            os.fsync(handle)
    own = [spent.charge for spent in [*before, line] if spent.run == task.run]
    return epsilon(own, settings.privacy.delta)


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    """Yield a handle at the end of the file's last whole line."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        content = os.pread(handle, os.fstat(handle).st_size, 0)
        whole = content.rfind(b"\n") + 1
        os.ftruncate(handle, whole)
        os.lseek(handle, whole, os.SEEK_SET)
        yield handle
    finally:
        os.close(handle)


def lines(settings: SiteSettings) -> Iterator[str]:
    """Yield what was spent, a line for each run and one for all, for `sscxr site log`; nothing without any."""
    spent, delta = read(Path(settings.state)), settings.privacy.delta
    for run in dict.fromkeys(one.run for one in spent):
        own = [one for one in spent if one.run == run]
        stage, cost = own[0].stage, epsilon([one.charge for one in own], delta)
        yield f"{own[-1].time} {run} {stage}: {len(own)} updates charged, epsilon {cost:.3g}"
    if spent:
        most = settings.privacy.epsilon
        total = epsilon([one.charge for one in spent], delta)
        allowed = f"of {most:g} allowed" if most else "no limit is set"
        yield f"all runs: epsilon {total:.3g} at delta {delta:g}, {allowed}"
