"""YAML as written: a value gets its setting's type, never YAML's own interpretation.

YAML reads `007` as 7, `no` as False and `2026-11-29` as a date. Here a scalar keeps its text until the schema
gives it a type. Anchors and tags are refused, and so are references to variables outside a user's own recipe.
"""

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sscxr.errors import SscxrError

MOST_BYTES, _MOST_VALUES, _MOST_LEVELS = 1_000_000, 100_000, 20  # settings of 10,000 sites are 300 kB
_NULLS = ("", "~", "null", "Null", "NULL")
_TEXT_TAGS = (None, "!", "tag:yaml.org,2002:str")

T = TypeVar("T")


class YamlError(SscxrError):
    """An invalid text; one line states what is wrong, and where."""


@dataclass(frozen=True)
class Scalar:
    """A single value.

    Attributes:
        text: as written; without the quotes of a quoted one.
        plain: whether it was written without quotes.
    """

    text: str
    plain: bool = True

    @property
    def is_null(self) -> bool:
        """Return whether it means no value, for a setting that may have none."""
        return self.plain and self.text in _NULLS


Node: typing.TypeAlias = Scalar | list["Node"] | dict[str, "Node"]


def parse(text: str) -> Node:
    """Return the only document in `text`; an empty text is an empty mapping.

    Raises:
        YamlError: not YAML, too large or too deep, several documents, a key that occurs twice or is not a single
            value, an anchor, an alias or a tag.
    """
    if len(text.encode("utf-8", "replace")) > MOST_BYTES:
        raise YamlError(f"{len(text)} characters are too many; at most {MOST_BYTES} bytes")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _refuse(yaml.parse(text, Loader=loader))
        found = _tree(yaml.compose(text, Loader=loader))
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise YamlError(f"not readable as YAML{place}: {problem or type(error).__name__}") from None
    except (UnicodeError, RecursionError) as error:
        raise YamlError(f"not readable as YAML: {type(error).__name__}") from None
    return {} if found == Scalar("") else found


def parse_foreign(text: str) -> Node:
    """Return the document in a text that somebody else wrote.

    Raises:
        YamlError: see `parse`; "${" in a value or a key, however escaped: it could be replaced from this machine's
            environment.
    """
    node = parse(text)
    if any("${" in value for value in _texts(node)):
        raise YamlError("'${' has no place in it: settings that are sent refer to nothing on this machine")
    return node


def typed(node: Node, kind: Any, *, literal: bool = True) -> Any:
    """Return plain values that OmegaConf checks against `kind`: texts (numbers too), None, lists, dictionaries.

    Args:
        kind: the type of a setting, or a dataclass of settings; None where the schema has no such setting.
        literal: treat "${" as text; otherwise OmegaConf resolves it.
    """
    if isinstance(node, dict):
        hints = typing.get_type_hints(kind) if is_dataclass(kind) else {}
        inner = _arguments(kind, dict)[-1]
        return {key: typed(value, hints.get(key, inner), literal=literal) for key, value in node.items()}
    if isinstance(node, list):
        inner = _arguments(kind, list)[-1]
        return [typed(value, inner, literal=literal) for value in node]
    if node.is_null and (kind is not str or not node.text):
        return None
    return escaped(node.text) if literal else node.text


def load(schema: type[T], text: str, *, foreign: bool) -> T:
    """Return an object of the dataclass `schema`, filled from a text; "${" in it is only text.

    Raises:
        YamlError: see `parse` and `parse_foreign`; a key that is unknown or missing; a value of another type.
    """
    node = parse_foreign(text) if foreign else parse(text)
    if not isinstance(node, dict):
        raise YamlError("expected lines such as 'key: value', found a bare value or a list")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), typed(node, schema))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise YamlError(f"no value for {', '.join(missing)}")
        return cast(T, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise YamlError(f"{key}{str(error).strip().splitlines()[0]}") from None


def dump(value: Any) -> str:
    """Return dictionaries, lists, texts and numbers as YAML, in their order."""
    return cast(str, yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100))


def escaped(text: str) -> str:
    """Return a text that OmegaConf reads as `text`, although "${" is in it."""
    head, *rest = text.split("${")
    for piece in rest:
        backslashes = len(head) - len(head.rstrip("\\"))
        head += "\\" * backslashes + "\\${" + piece
    return head


def kind_of(schema: type[Any], key: str) -> Any:
    """Return the type of the setting with a dotted name; None if unknown."""
    kind: Any = schema
    for name in key.split("."):
        if is_dataclass(kind):
            known = {field.name for field in fields(kind)}
            kind = typing.get_type_hints(kind)[name] if name in known else None
        else:
            kind = _arguments(kind, dict)[-1]
    return kind


def _arguments(kind: Any, container: type[Any]) -> tuple[Any, ...]:
    """Return the types inside `list[...]` or `dict[..., ...]`; `(None,)` if `kind` is not of that type."""
    if isinstance(kind, types.UnionType):  # of a type and None
        kind = next(one for one in typing.get_args(kind) if one is not types.NoneType)
    return typing.get_args(kind) if typing.get_origin(kind) is container else (None,)


def _texts(node: Node) -> Iterator[str]:
    if isinstance(node, Scalar):
        yield node.text
    elif isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from _texts(value)
    else:
        for value in node:
            yield from _texts(value)


def _refuse(events: Iterator[Any]) -> None:
    """Stop at the first element that is not allowed, without recursion and before any value is built."""
    levels = documents = 0
    for count, event in enumerate(events):
        where = f"line {event.start_mark.line + 1}"
        if count > _MOST_VALUES:
            raise YamlError(f"more than {_MOST_VALUES} values")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise YamlError(
                f"{where}: anchors and aliases (& and *) have no place here; quote or repeat the text"
            )
        tag = getattr(event, "tag", None)
        if tag not in (_TEXT_TAGS if isinstance(event, yaml.ScalarEvent) else (None,)):
            raise YamlError(f"{where}: the tag {tag!r} has no place here")
        levels += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if levels > _MOST_LEVELS:
            raise YamlError(f"{where}: more than {_MOST_LEVELS} levels")
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise YamlError("more than one document ('---')")


def _tree(node: yaml.Node | None) -> Node:
    """Return the values of a document; a node that YAML itself resolves to a text was not written as null."""
    if node is None:
        return Scalar("")
    if isinstance(node, yaml.ScalarNode):
        quoted = bool(node.style) or (node.value in _NULLS and node.tag in _TEXT_TAGS)
        return Scalar(node.value, plain=not quoted)
    if isinstance(node, yaml.SequenceNode):
        return [_tree(value) for value in node.value]
    found: dict[str, Node] = {}
    for key, value in node.value:
        where = f"line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise YamlError(f"{where}: a key is a single name")
        if key.value in found:
            raise YamlError(f"{where}: {key.value[:80]!r} is there twice")
        found[key.value] = _tree(value)
    return found
