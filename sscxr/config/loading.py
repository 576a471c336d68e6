"""Reads the settings of a run: the schema, filled from YAML and `key=value` overrides.

A recipe (`configs/demo.yaml`, or your own path) states its changes to `configs/default.yaml`. Only the layer that
calls `load` sees the result: core functions take tensors and numbers.
"""

import copy
import difflib
import functools
import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass, make_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sscxr.config import ranges, yaml_text
from sscxr.config.schema import RECIPE_PRIVACY, Config, ConfigError

_OWN = {field.name for field in fields(Config)}  # beside the sections of the methods, which `schema` adds
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9._/-]+")  # reads the same with and without quotes


def load(file: str | Path = "default", overrides: Sequence[str] = (), *, foreign: bool = False) -> Config:
    """Return a recipe's settings on top of the defaults, with `key=value` overrides on top of both.

    Args:
        file: a shipped recipe by name (`demo`) or the path of a YAML file.
        overrides: dotted settings, e.g. `["pretrain.lr=1e-3"]`; values are YAML, but a text is used as it is
            written. `setting` makes one from a value.
        foreign: the file may be from someone else, as in a run's folder: "${" in it is refused.

    Raises:
        ConfigError: a key is unknown (the message has the nearest known one), a type is wrong, or a value is out of
            its range.
    """
    layers = [] if str(file) == "default" else [(str(file), _read(_find(file), foreign=foreign))]
    layers += [(f"override {_short(item)}", _override(item)) for item in overrides]
    merged = copy.deepcopy(_defaults())
    for origin, layer in layers:
        _fill(merged, origin, layer)
    return _checked(merged)


def loads(text: str, *, partial: bool = False) -> Config:
    """Return the settings in the YAML text of a resolved config, as `dumps` wrote it; the sender is not trusted.

    Args:
        partial: whether missing settings get their defaults.

    Raises:
        ConfigError: as for `load`; or the text has "${" in it, in any spelling.
    """
    return copy.deepcopy(_loaded(text, partial))


@functools.lru_cache(maxsize=4)  # every message of a run carries the same text; reading it takes 50 ms
def _loaded(text: str, partial: bool) -> Config:
    merged = copy.deepcopy(_defaults()) if partial else OmegaConf.structured(schema())
    if not partial:  # methods that a later version added still get their defaults
        for name in {field.name for field in fields(schema())} - _OWN:
            merged[name] = copy.deepcopy(_defaults()[name])
    _fill(merged, "resolved config", _layer("resolved config", text, foreign=True))
    try:
        return _checked(merged)
    except ConfigError as error:
        raise ConfigError(f"resolved config: {error}") from None


def dumps(config: Config) -> str:
    """Return the settings as YAML, complete and resolved."""
    return yaml_text.dump(as_dict(config))


def setting(key: str, value: object) -> str:
    """Return the override that gives a setting exactly this value: a text, a number, None, or a list of texts."""
    plain = [yaml_text.escaped(str(item)) for item in value] if isinstance(value, list) else value
    if isinstance(plain, str | Path):
        plain = yaml_text.escaped(str(plain))
        if _PLAIN_TEXT.fullmatch(plain) and plain.lower() != "null":
            return f"{key}={plain}"
    return f"{key}={json.dumps(plain, ensure_ascii=False)}"


def as_dict(config: Config) -> dict[str, Any]:
    """Return the settings as plain dictionaries and lists."""
    return asdict(config)


def split_overrides(text: str) -> list[str]:
    """Split a string of overrides, as `flwr run` passes it, like a shell."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"overrides {text!r}: {error}; quote each value that has spaces") from None


def recipe(config: Config) -> dict[str, Any]:
    """Return the settings that must be the same everywhere, by section."""
    whole = as_dict(config)
    run = {name: whole["run"][name] for name in ("stage", "threads", "compile")}
    privacy = {name: whole["privacy"][name] for name in RECIPE_PRIVACY}
    return {"run": run, "privacy": privacy} | {name: whole[name] for name in config.recipe_sections}


def recipe_hash(config: Config) -> str:
    """Return 16 hex digits that are equal if the settings of objective, model and input are."""
    return hashlib.sha256(json.dumps(recipe(config), sort_keys=True).encode()).hexdigest()[:16]


def known_keys() -> list[str]:
    """Return every setting's dotted name."""
    return list(_keys(schema()))


def _keys(schema: type[Any], prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(schema)
    for field in fields(schema):
        kind = hints[field.name]
        yield prefix + field.name
        if is_dataclass(kind):
            yield from _keys(cast(type[Any], kind), f"{prefix}{field.name}.")


def _find(file: str | Path) -> Path:
    path = Path(file)
    if path.is_file():
        return path
    if path.suffix in ("", ".yaml") and path.parent in (Path(), Path("configs")):
        shipped = _shipped(path.stem)
        if shipped.is_file():
            return shipped
    names = ", ".join(sorted(entry.stem for entry in _shipped("default").parent.glob("*.yaml")))
    raise ConfigError(f"no config file {str(file)!r}; give a path, or one of the shipped recipes: {names}")


def _shipped(name: str) -> Path:
    return Path(str(resources.files("configs") / f"{name}.yaml"))


@functools.cache
def _defaults() -> Any:
    """Return the schema, filled from `configs/default.yaml`; copy it before changing it."""
    filled = OmegaConf.structured(schema())
    _fill(filled, "configs/default.yaml", _read(_shipped("default")))
    return filled


@functools.cache
def schema() -> type[Config]:
    """Return `Config` with the sections of the methods, which `configs/default.yaml` has beside those of `Config`.

    Their types are those of the defaults. The methods' own modules have types and ranges, but import torch, which a
    report or `sscxr --help` does not need.
    """
    written = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(_shipped("default"))))
    sections = []
    for name in sorted(written.keys() - _OWN):
        settings = [(key, _kind(value), MISSING) for key, value in written[name].items()]
        sections.append((name, make_dataclass(name, settings), MISSING))
    return cast(type[Config], make_dataclass("Settings", sections, bases=(Config,)))


def _kind(value: Any) -> Any:
    return list[type(value[0])] if isinstance(value, list) else type(value)  # type: ignore[misc]


def _fill(merged: Any, origin: str, layer: dict[str, Any]) -> None:
    try:
        for key, value in layer.items():
            if key in merged and not isinstance(value, dict):
                found = value[:80] if isinstance(value, str) else _short(value)
                raise ConfigError(f"{origin}: {key!r} is a section of settings, not {found}")
        merged.merge_with(layer)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{origin}: {_explain(error)}") from None


def _read(path: Path, *, foreign: bool = False) -> dict[str, Any]:
    return _layer(str(path), text_of(path), foreign=foreign)


def text_of(path: Path) -> str:
    """Return the text of a file of settings.

    Raises:
        ConfigError: it cannot be read, or is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
        raise ConfigError(f"{path}: {reason}") from None


def _layer(origin: str, text: str, *, foreign: bool) -> dict[str, Any]:
    try:
        node = yaml_text.parse_foreign(text) if foreign else yaml_text.parse(text)
    except yaml_text.YamlError as error:
        raise ConfigError(f"{origin}: {error}") from None
    if not isinstance(node, dict) or any(len(key.split()) != 1 for key in node):
        raise ConfigError(f"{origin}: expected sections such as 'pretrain:', found a bare value or a list")
    return cast(dict[str, Any], yaml_text.typed(node, schema(), literal=foreign))


def _override(item: str) -> dict[str, Any]:
    key, sign, text = (part.strip() for part in item.partition("="))
    if not sign or not key:
        raise ConfigError(f"override {item!r} is not of the form key=value, such as pretrain.lr=1e-3")
    kind = yaml_text.kind_of(schema(), key)
    try:
        value = yaml_text.typed(_value(text, kind), kind, literal=False)
    except yaml_text.YamlError as error:
        raise ConfigError(f"override {item!r}: {error}") from None
    for name in reversed(key.split(".")):
        value = {name: value}
    return cast(dict[str, Any], value)


def _value(text: str, kind: Any) -> yaml_text.Node:
    """Return the value after "key="; a text includes colons and hashes, unless it is quoted."""
    if kind not in (str, str | None):
        return yaml_text.parse(text) if text else yaml_text.Scalar("")
    try:
        node = yaml_text.parse(text) if text[:1] in ("'", '"') else None
    except yaml_text.YamlError:
        node = None
    return node if isinstance(node, yaml_text.Scalar) else yaml_text.Scalar(text)


def _explain(error: OmegaConfBaseException) -> str:
    key = str(getattr(error, "full_key", None) or "")
    known = known_keys()
    if key and key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        leaf = key.rsplit(".", 1)[-1]
        same_leaf = difflib.get_close_matches(leaf, [name.rsplit(".", 1)[-1] for name in known], n=1)
        if same_leaf:
            candidates = [name for name in known if name.rsplit(".", 1)[-1] == same_leaf[0]]
            near = difflib.get_close_matches(key, candidates, n=1, cutoff=0.0)
        hint = f"did you mean {near[0]!r}?" if near else "docs/configuration.md lists all"
        return f"unknown setting {_short(key)}; {hint}"
    first_line = str(error).strip().splitlines()[0]
    return f"setting {key!r}: {first_line}" if key else first_line


def _of_reference(key: str, error: Exception) -> str:
    """Return one line on a "${" that cannot be resolved."""
    if isinstance(error, RecursionError):
        reason = "refers to itself, directly or through another setting"
    else:
        reason = (
            str(error).strip().splitlines()[0].rpartition("while resolving interpolation: ")[2].strip('"')
        )
    return f"setting {key!r}: {reason}; correct the '${{...}}' in it, or write the value itself"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _checked(merged: Any) -> Config:
    _resolve(merged, "")
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(f"settings without a value: {', '.join(missing)}")
    config = cast(Config, OmegaConf.to_object(merged))
    config.run.compile = config.run.compile.lower()  # YAML's true is Python's True
    problem = ranges.problem(config)
    if problem:
        raise ConfigError(problem)
    return config


def _resolve(node: Any, prefix: str) -> None:
    """Replace references by their values, one by one, so that an error names its setting."""
    names = list(node.keys()) if OmegaConf.is_dict(node) else range(len(node))
    for name in names:
        key = f"{prefix}{name}"
        try:
            refers = OmegaConf.is_interpolation(node, name)
            value = node[name]
            if refers:
                node[name] = value
        except MissingMandatoryValue:
            continue  # `_checked` lists all of them
        except (OmegaConfBaseException, RecursionError) as error:
            raise ConfigError(_of_reference(key, error)) from None
        if OmegaConf.is_config(value):
            _resolve(value, f"{key}.")
        elif isinstance(value, str) and "${" in value:
            raise ConfigError(
                f"{key}={_short(value)}: '${{' cannot be sent to a site; rename the file or folder"
            )
