"""Messages to nodes and back over Flower's Grid; no call on it waits for ever."""

import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from time import monotonic, sleep
from typing import Any, TypeVar, cast

import httpx
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from sscxr.errors import SscxrError
from sscxr.federation import wire
from sscxr.federation.wire import ARRAYS, RECORD, WireError

_SECRET = "secret"  # a record of a task that no site reads
_POLL = 0.5  # seconds between looks for replies that have not come yet
_PATIENCE = 120.0  # seconds for a call that moves no large payload
_LOOK = 30.0  # seconds between looks whether the SuperLink is still there
_GLANCE = 1.0  # seconds for a reply to come over before others are looked for
_AT_ONCE = 8  # replies on their way at once; each is in memory
_STALLED = 30.0  # seconds after which a reply on its way takes no other's place any more
_BESIDE = 2**24  # bytes of a reply beside its update: its fields, and the objects that it consists of
_CONNECTION = (httpx.HTTPError, OSError)  # what a call raises on the SuperLink's account

log = logging.getLogger("sscxr.server")
Answer = TypeVar("Answer")


class RunStopped(SscxrError):  # noqa: N818  (no defect: the state is saved and the run can go on)
    """The run cannot go on now; its state is saved. One line that says why and how to go on."""


class Mail:
    """The Grid, with an end to every wait.

    Flower's Grid tries for ever to reach a SuperLink that is gone.

    Attributes:
        bytes_sent: of arrays, as they travel, since someone set it to 0.
    """

    def __init__(self, grid: Grid, payload: int) -> None:
        """Hold the replies to a size.

        Args:
            payload: bytes of an update; a reply of more than twice as much, and `_BESIDE`, is refused.
        """
        self._grid, self.bytes_sent = grid, 0
        self._in_process = getattr(grid, "in_process", False)
        if not self._in_process:
            # Imported here: what it imports takes a second, which a simulation can do without.
            from server.intake import limit_replies

            limit_replies(2 * payload + _BESIDE)

    def nodes(self) -> dict[int, Any]:
        """The connected nodes: id -> Flower's NodeInfo, with the name and the key that they are registered with."""
        return {info.node_id: info for info in self._call(lambda: list(self._grid.get_nodes()), _PATIENCE)}

    def ask(
        self,
        tasks: Mapping[int, wire.Task],
        kind: str,
        deadline: float,
        arrays: ArrayRecord | None = None,
    ) -> Iterator[tuple[int, Message | WireError]]:
        """Send each node its task and yield the replies as they come, one at a time, until the deadline.

        In place of a reply that cannot be read comes the error that says why.
        """
        waiting: dict[str, int] = {}
        until = monotonic() + deadline
        patience = max(deadline, _PATIENCE)
        size = 0 if arrays is None else record_bytes(arrays)
        for node, task in tasks.items():
            record = RecordDict({RECORD: ConfigRecord(dict(wire.to_record(task)))})
            if arrays is not None:
                record[ARRAYS] = arrays
            # Flower takes a reply from any node that names the message it answers, and a message's name is the hash
            # of what is in it: with this in it, none but who received it can name it.
            record[_SECRET] = ConfigRecord({_SECRET: secrets.token_hex(16)})
            message = Message(record, node, kind, ttl=deadline, group_id=str(task.round))
            for identifier in self._call(partial(self._grid.push_messages, [message]), patience):
                if identifier:
                    waiting[identifier] = node
                    self.bytes_sent += size
        pulls: dict[str, _Call] = {}
        looked = monotonic()
        while waiting and monotonic() < until:
            heard = False
            for identifier in list(waiting):
                for reply in self._pulled(identifier, pulls, until):
                    heard = True
                    yield waiting.pop(identifier), reply
            if monotonic() - looked > _LOOK:
                self.nodes()  # ends the run where the SuperLink is gone
                looked = monotonic()
            if waiting and not heard:
                sleep(_POLL)

    def settle(self) -> None:
        """Wait until the sites' states are on their disks; in a simulation alone a reply comes before that."""
        if self._in_process:
            cast(Any, self._grid).settle()

    def _pulled(
        self, identifier: str, pulls: dict[str, "_Call"], until: float
    ) -> Iterable[Message | WireError]:
        """A message's reply, if it is here by now.

        A pull waits for the last byte of a reply that is still being uploaded; so it goes on by itself, and the
        others are looked for meanwhile, a few at a time. Sites that announce a reply and send none, or are on a
        slow line, hold up nobody for longer than `_STALLED`.
        """
        if self._in_process:
            return self._grid.pull_messages([identifier])
        call = pulls.get(identifier)
        if call is None:
            if sum(not pull.older(_STALLED) for pull in pulls.values()) >= _AT_ONCE:
                return ()
            call = pulls[identifier] = _Call(partial(self._grid.pull_messages, [identifier]))
        glance = 0.0 if call.older(_GLANCE) else _GLANCE
        if not call.ended(min(glance, max(0.0, until - monotonic()))):
            return ()
        del pulls[identifier]
        if call.error and not isinstance(call.error, _CONNECTION):
            # What the site sent cannot be put together, which Flower does before we see it. The error's own text
            # may repeat the site's words.
            return (_unreadable(call.error),)
        return cast(Iterable[Message], call.answer())

    def _call(self, call: Callable[[], Answer], patience: float) -> Answer:
        """Make a call on the Grid, for so long.

        Raises:
            RunStopped: it did not return in time, or Flower ended the run.
        """
        if self._in_process:
            return call()  # the simulation trains within its calls, and training is bound to its thread
        made = _Call(call)
        if not made.ended(patience):
            raise RunStopped(
                f"the SuperLink did not answer within {patience:g} s; start it again, and resume the run"
            )
        return cast(Answer, made.answer())


def _unreadable(error: BaseException) -> WireError:
    return (
        error if isinstance(error, WireError) else WireError(f"an unreadable reply ({type(error).__name__})")
    )


class _Call:
    """A call on the Grid in a thread of its own, which may never return.

    Attributes:
        error: what it raised, once it has ended.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call, self._began = call, monotonic()
        self._answer: object = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._answer = self._call()
        except BaseException as error:
            self.error = error

    def ended(self, limit: float) -> bool:
        """Whether it has returned, or does so within so many seconds."""
        self._thread.join(limit)
        return not self._thread.is_alive()

    def older(self, seconds: float) -> bool:
        """Whether it was made longer ago than that."""
        return monotonic() - self._began > seconds

    def answer(self) -> object:
        """What it returned.

        Raises:
            RunStopped: it raised, as where Flower ended the run.
        """
        if self.error is None:
            return self._answer
        log.error("the SuperLink: %s", self.error)
        raise RunStopped(
            f"the connection to the SuperLink ended ({type(self.error).__name__}); see that it runs, and resume "
            "the run"
        )


def record_bytes(record: ArrayRecord) -> int:
    """Bytes of a record's arrays as they travel."""
    return sum(len(array.data) for array in record.values())
