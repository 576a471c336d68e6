"""The result of a check, as a line of text and as JSON."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "failed"]
EXIT_CODES: dict[State, int] = {"ok": 0, "warning": 1, "failed": 2}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was checked.
        state: "ok", "warning" or "failed".
        value: what was found, with its unit.
        advice: what to do about it; empty if all is well.
        detail: further lines for this terminal alone; they may contain small counts, and are never in the JSON.
    """

    name: str
    state: State
    value: str
    advice: str = ""
    detail: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the check's lines as shown."""
        shown = [f"{self.state:8} {self.name:14} {self.value}"]
        shown += [f"{'':23} {line}" for line in self.detail]
        return [*shown, f"{'':23} -> {self.advice}"] if self.advice else shown


def ok(name: str, value: str, detail: tuple[str, ...] = ()) -> Check:
    return Check(name, "ok", value, "", detail)


def warning(name: str, value: str, advice: str) -> Check:
    return Check(name, "warning", value, advice)


def failed(name: str, value: str, advice: str) -> Check:
    return Check(name, "failed", value, advice)


def judged(name: str, value: str, *, fails: bool, warns: bool, advice: str) -> Check:
    """Return a failed check, a warning or ok, whichever is worst."""
    if not (fails or warns):
        return ok(name, value)
    return Check(name, "failed" if fails else "warning", value, advice)


def guarded(name: str, check: Callable[..., Iterable[Check]], *given: Any) -> Iterator[Check]:
    """Yield a check's results. An exception becomes a failed line with its type alone: its text may name a file."""
    try:
        yield from check(*given)
    except Exception as error:
        yield failed(
            name, f"could not be checked ({type(error).__name__})", "report it to the maintainers of sscxr"
        )


def exit_code(checks: Iterable[Check]) -> int:
    """Return 0: all ok; 1: warnings; 2: a failure."""
    return max((EXIT_CODES[check.state] for check in checks), default=0)


def to_json(checks: Iterable[Check]) -> str:
    """Return a JSON list of objects with name, state, value and advice."""
    fields = ("name", "state", "value", "advice")
    return json.dumps([{name: getattr(check, name) for name in fields} for check in checks], indent=1)
