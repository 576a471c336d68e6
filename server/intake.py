"""Limits the size of a reply that the server reads; Flower itself sets no limit.

Flower fetches the objects that a reply consists of and assembles them before anybody can inspect the whole. An
array lists its pieces by number, and may list one piece any number of times, so a reply of some kB can expand to
terabytes.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock
from typing import Any

from flwr.app import Message, RecordDict
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content
from flwr.superlink.grid import http_grid

from sscxr.federation.wire import WireError

_OBJECT = 1000  # bytes that an object takes beside its content, roughly


def limit_replies(most: int) -> None:
    """From now on in this process, refuse replies of more than `most` bytes, as sent or expanded."""
    flower: Any = http_grid
    flower.pull_objects = partial(_pull, most)
    flower.inflate_object_from_contents = partial(_put_together, most)


def _pull(most: int, object_ids: list[str], pull_object_fn: Callable[[str], bytes]) -> dict[str, bytes]:
    """Flower's `pull_objects`, with a size limit."""
    taken, lock = 0, Lock()  # Flower fetches in several threads

    def pull(object_id: str) -> bytes:
        nonlocal taken
        content = pull_object_fn(object_id)
        with lock:
            taken += len(content) + _OBJECT
            if taken > most:
                raise WireError(f"an oversized reply (more than {most / 1e6:.0f} MB)")
        return content

    return inflatable_utils.pull_objects(object_ids, pull)


def _put_together(most: int, object_id: str, contents: dict[str, bytes]) -> Message:
    """Flower's `inflate_object_from_contents`, with a size limit, for messages alone."""
    if sum(_unfolded(content, contents) for content in contents.values()) > most:
        raise WireError(f"an oversized reply (unfolded more than {most / 1e6:.0f} MB)")
    made: Any = inflatable_utils.inflate_object_from_contents(object_id, contents)
    if not isinstance(made, Message) or not (made.has_error() or isinstance(made.content, RecordDict)):
        raise WireError("a reply that is not a message")
    return made


def _unfolded(content: bytes, contents: Mapping[str, bytes]) -> int:
    """Return the expanded bytes of an array object; 0 for another object."""
    kind, pieces, _ = get_object_head_values_from_object_content(content)
    if kind != "Array":
        return 0
    named = json.loads(content.partition(b"\0")[2])["arraychunk_ids"]
    return sum(len(contents[pieces[number]]) for number in named)
