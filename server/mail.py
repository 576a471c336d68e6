"""Messages to nodes and back over Flower's Grid; no call to it waits for ever."""

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
_POLL = 0.5  # seconds between polls for outstanding replies
_PATIENCE = 120.0  # seconds for a call without a large payload
_LOOK = 30.0  # seconds between checks that the SuperLink is still running
_GLANCE = 1.0  # seconds to wait for a reply's transfer before polling for others
_AT_ONCE = 8  # replies in transit at a time; each is in memory
_STALLED = 30.0  # seconds after which a reply in transit no longer counts towards `_AT_ONCE`
_BESIDE = 2**24  # bytes of a reply beside its update: its fields, and the objects that it consists of
_CONNECTION = (httpx.HTTPError, OSError)  # errors of a call that the SuperLink causes

log = logging.getLogger("sscxr.server")
Answer = TypeVar("Answer")


class RunStopped(SscxrError):  # noqa: N818  (not a bug: the state is saved and the run can be resumed)
    """The run cannot continue now; its state is saved. One line states why and how to resume."""


class Mail:
    """The Grid, with a timeout on every wait.

    Flower's Grid retries a lost SuperLink for ever.

    Attributes:
        bytes_sent: bytes of arrays sent since the caller last set this to 0.
    """

    def __init__(self, grid: Grid, payload: int) -> None:
        """Limit the size of replies.

        Args:
            payload: bytes of an update; a reply of more than twice as much, plus `_BESIDE`, is refused.
        """
        self._grid, self.bytes_sent = grid, 0
        self._in_process = getattr(grid, "in_process", False)
        if not self._in_process:
            # Imported here: its imports take a second, which a simulation saves.
            from server.intake import limit_replies

            limit_replies(2 * payload + _BESIDE)

    def nodes(self) -> dict[int, Any]:
        """Return the connected nodes: id -> Flower's NodeInfo, with the registered name and key."""
        return {info.node_id: info for info in self._call(lambda: list(self._grid.get_nodes()), _PATIENCE)}

    def ask(
        self,
        tasks: Mapping[int, wire.Task],
        kind: str,
        deadline: float,
        arrays: ArrayRecord | Mapping[int, ArrayRecord] | None = None,
    ) -> Iterator[tuple[int, Message | WireError]]:
        """Send each node its task and yield the replies as they arrive, one at a time, until the deadline.

        An unreadable reply is replaced by the error that states why.

        Args:
            arrays: the same for all nodes, or by node.
        """
        waiting: dict[str, int] = {}
        # In a simulation sites may have to take turns; each has its own time to train.
        until = monotonic() + deadline * (len(tasks) if self._in_process else 1)
        patience = max(deadline, _PATIENCE)
        alike = arrays is None or isinstance(arrays, ArrayRecord)
        each = cast(Mapping[int, ArrayRecord | None], dict.fromkeys(tasks, arrays) if alike else arrays)
        for node, task in tasks.items():
            record = RecordDict({RECORD: ConfigRecord(dict(wire.to_record(task)))})
            own = each.get(node)
            if own is not None:
                record[ARRAYS] = own
            # Flower accepts a reply from any node that names the message it answers, and a message's name is the
            # hash of its content: with this secret in it, only the recipient can name it.
            record[_SECRET] = ConfigRecord({_SECRET: secrets.token_hex(16)})
            message = Message(record, node, kind, ttl=deadline, group_id=str(task.round))
            for identifier in self._call(partial(self._grid.push_messages, [message]), patience):
                if identifier:
                    waiting[identifier] = node
                    self.bytes_sent += 0 if own is None else record_bytes(own)
        pulls: dict[str, _Call] = {}
        looked = monotonic()
        while waiting and monotonic() < until:
            heard = False
            for identifier in list(waiting):
                for reply in self._pulled(identifier, pulls, until):
                    heard = True
                    yield waiting.pop(identifier), reply
            if monotonic() - looked > _LOOK:
                self.nodes()  # ends the run if the SuperLink is gone
                looked = monotonic()
            if waiting and not heard:
                self._rest()

    def _rest(self) -> None:
        """Wait before the next poll; in a simulation, only until a reply is there."""
        if self._in_process:
            cast(Any, self._grid).wait(_POLL)
        else:
            sleep(_POLL)

    def settle(self) -> None:
        """Wait until the sites' states are on disk; only in a simulation may a reply arrive earlier."""
        if self._in_process:
            cast(Any, self._grid).settle()

    def _pulled(
        self, identifier: str, pulls: dict[str, "_Call"], until: float
    ) -> Iterable[Message | WireError]:
        """Return a message's reply, if it has arrived.

        A pull waits for the last byte of a reply that is still being uploaded; so it runs in its own thread while
        others are polled, a few at a time. Sites that announce a reply and send none, or are on a slow line,
        delay the others by at most `_STALLED`.
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
            # Flower could not assemble the site's reply, which it does before we see it. The error's own text may
            # repeat the site's words.
            what = f"an unreadable reply ({type(call.error).__name__})"
            return (call.error if isinstance(call.error, WireError) else WireError(what),)
        return cast(Iterable[Message], call.answer())

    def _call(self, call: Callable[[], Answer], patience: float) -> Answer:
        """Call the Grid; RunStopped if it does not return within `patience` seconds, or Flower ended the run."""
        if self._in_process:
            return call()  # the simulation trains within its calls, and training has to stay in this thread
        made = _Call(call)
        if not made.ended(patience):
            raise RunStopped(
                f"the SuperLink did not answer within {patience:g} s; start it again, and resume the run"
            )
        return cast(Answer, made.answer())


class _Call:
    """A call to the Grid in its own thread, which may never return; `error` is what it raised."""

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
        """Return whether the call has ended, or does so within `limit` seconds."""
        self._thread.join(limit)
        return not self._thread.is_alive()

    def older(self, seconds: float) -> bool:
        """Return whether the call was made more than `seconds` ago."""
        return monotonic() - self._began > seconds

    def answer(self) -> object:
        """Return the call's result; RunStopped if it raised, for example since Flower ended the run."""
        if self.error is None:
            return self._answer
        log.error("the SuperLink: %s", self.error)
        raise RunStopped(
            f"the connection to the SuperLink ended ({type(self.error).__name__}); check that it runs, and resume "
            "the run"
        )


def record_bytes(record: ArrayRecord) -> int:
    """Return the bytes of a record's arrays as sent."""
    return sum(len(array.data) for array in record.values())
