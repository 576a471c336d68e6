"""Messages to nodes and back over Flower's Grid; no call on it waits for ever."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from time import monotonic, sleep
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from sscxr import wire
from sscxr.errors import SscxrError
from sscxr.wire import ARRAYS, RECORD

_POLL = 0.5  # seconds between looks for replies that have not come yet
_PATIENCE = 120.0  # seconds for a call that moves no large payload

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

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.bytes_sent = 0

    def nodes(self) -> dict[int, Any]:
        """The connected nodes: id -> Flower's NodeInfo, with the name and the key that they are registered with."""
        return {info.node_id: info for info in self._call(lambda: list(self._grid.get_nodes()), _PATIENCE)}

    def ask(
        self,
        tasks: Mapping[int, wire.Task],
        kind: str,
        deadline: float,
        arrays: ArrayRecord | None = None,
    ) -> Iterator[tuple[int, Message]]:
        """Send each node its task and yield the replies as they come, one at a time, until the deadline."""
        waiting: dict[str, int] = {}
        until = monotonic() + deadline
        patience = max(deadline, _PATIENCE)
        size = 0 if arrays is None else record_bytes(arrays)
        for node, task in tasks.items():
            record = RecordDict({RECORD: ConfigRecord(dict(wire.to_record(task)))})
            if arrays is not None:
                record[ARRAYS] = arrays
            message = Message(record, node, kind, ttl=deadline, group_id=str(task.round))
            for identifier in self._call(partial(self._grid.push_messages, [message]), patience):
                if identifier:
                    waiting[identifier] = node
                    self.bytes_sent += size
        while waiting and monotonic() < until:
            heard = False
            for identifier in list(waiting):
                for reply in self._call(partial(self._grid.pull_messages, [identifier]), patience):
                    heard = True
                    yield waiting.pop(identifier), reply
            if waiting and not heard:
                sleep(_POLL)

    def _call(self, call: Callable[[], Answer], patience: float) -> Answer:
        """Make a call on the Grid, for so long.

        Raises:
            RunStopped: it did not return in time, or Flower ended the run.
        """
        if getattr(self._grid, "in_process", False):
            return call()  # the simulation trains within its calls, and training is bound to its thread
        answers: list[Answer] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                answers.append(call())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(patience)
        if answers:
            return answers[0]
        if not errors:
            raise RunStopped(
                f"the SuperLink did not answer within {patience:g} s; start it again, and resume the run"
            )
        log.error("the SuperLink: %s", errors[0])
        raise RunStopped(
            f"the connection to the SuperLink ended ({type(errors[0]).__name__}); see that it runs, and resume "
            "the run"
        ) from None


def record_bytes(record: ArrayRecord) -> int:
    """Bytes of a record's arrays as they travel: the values, and about a hundred for each array's header."""
    return sum(len(array.data) for array in record.values())
