"""The settings of a run: one typed schema, filled from YAML and `key=value` overrides.

Values live in `configs/default.yaml`, each with its unit or reason; the schema below holds only their names
and types. A recipe (`configs/demo.yaml`, a path of your own) states what it changes. Nothing below the layer
that calls `load` sees this object: core functions take tensors and numbers.
"""

import copy
import difflib
import functools
import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sscxr import ranges
from sscxr.errors import SscxrError


class ConfigError(SscxrError):
    """A setting that cannot be used: one line that names it and says what to do."""


@dataclass
class RunConfig:
    name: str = MISSING
    stage: str = MISSING
    seed: int = MISSING
    threads: int = MISSING
    compile: str = MISSING
    device: str = MISSING
    deterministic: bool = MISSING


@dataclass
class DataConfig:
    cache_size: int = MISSING
    laterals: bool = MISSING
    test_share: float = MISSING
    mean: float = MISSING
    std: float = MISSING


@dataclass
class EncoderConfig:
    name: str = MISSING
    img_size: int = MISSING
    patch_size: int = MISSING
    in_chans: int = MISSING
    depth: int | None = MISSING
    drop_path: float = MISSING
    start: str | None = MISSING


@dataclass
class AugmentConfig:
    crop_scale: list[float] = MISSING
    crop_ratio: list[float] = MISSING
    flip: float = MISSING
    brightness: float = MISSING
    contrast: float = MISSING
    blur: float = MISSING


@dataclass
class GMMLConfig:
    kinds: list[str] = MISSING
    drop_budget: list[float] = MISSING
    alien_budget: list[float] = MISSING
    max_block: float = MISSING
    align: int = MISSING
    centre_bias: bool = MISSING
    blocks: list[int] = MISSING
    head_layers: int = MISSING
    corrupted_only: bool = MISSING


@dataclass
class PretrainConfig:
    objective: str = MISSING
    batch_size: int = MISSING
    accumulate: int = MISSING
    checkpointing: bool = MISSING
    views: int = MISSING
    lr: float = MISSING
    min_lr: float = MISSING
    warmup: float = MISSING
    betas: list[float] = MISSING
    weight_decay: float = MISSING
    weight_decay_end: float = MISSING
    clip: float = MISSING
    clip_per_tensor: bool = MISSING
    amp: str = MISSING


@dataclass
class FinetuneConfig:
    img_size: int = MISSING
    epochs: int = MISSING
    min_steps: int = MISSING
    patience: int = MISSING
    val_share: float = MISSING
    batch_size: int = MISSING
    frozen: bool = MISSING
    lr: float = MISSING
    min_lr: float = MISSING
    warmup: float = MISSING
    betas: list[float] = MISSING
    weight_decay: float = MISSING
    layer_decay: float = MISSING
    drop_path: float = MISSING
    clip: float = MISSING
    amp: str = MISSING
    rotate: float = MISSING
    shift: float = MISSING
    scale: list[float] = MISSING
    flip: float = MISSING
    brightness: float = MISSING
    contrast: float = MISSING


@dataclass
class ClassifyConfig:
    labels: list[str] = MISSING
    per_class: int = MISSING
    pool: str = MISSING
    balance: bool = MISSING
    smoothing: float = MISSING
    specificity: float = MISSING


@dataclass
class SegmentConfig:
    feature_size: int = MISSING


@dataclass
class ServerOptimiserConfig:
    name: str = MISSING
    lr: float = MISSING
    momentum: float = MISSING


@dataclass
class FederationConfig:
    rounds: int = MISSING
    local_epochs: float = MISSING
    sites: list[str] = MISSING
    quorum: float = MISSING
    deadline: float = MISSING
    start_timeout: float = MISSING
    retries: int = MISSING
    uplink: str = MISSING
    downlink: str = MISSING
    share_head: bool | None = MISSING
    max_images: int = MISSING
    max_update_norm: float = MISSING
    keep_checkpoints: int = MISSING
    evaluate_every: int = MISSING
    server: ServerOptimiserConfig = MISSING


@dataclass
class PrivacyConfig:
    min_cell: int = MISSING


@dataclass
class ProbeConfig:
    neighbours: int = MISSING
    resamples: int = MISSING
    min_cases: int = MISSING
    batch_size: int = MISSING
    cohorts: dict[str, list[str]] = MISSING


@dataclass
class SimConfig:
    partition: str = MISSING
    by: str = MISSING
    label: str | None = MISSING
    file: str | None = MISSING
    alpha: float = MISSING
    uncertain: str = MISSING
    train_on_test: bool = MISSING
    phantoms: int = MISSING


@dataclass
class Config:
    run: RunConfig = MISSING
    data: DataConfig = MISSING
    encoder: EncoderConfig = MISSING
    augment: AugmentConfig = MISSING
    pretrain: PretrainConfig = MISSING
    gmml: GMMLConfig = MISSING
    finetune: FinetuneConfig = MISSING
    classify: ClassifyConfig = MISSING
    segment: SegmentConfig = MISSING
    federation: FederationConfig = MISSING
    privacy: PrivacyConfig = MISSING
    probe: ProbeConfig = MISSING
    sim: SimConfig = MISSING


# What must be the same at every site and at the server for an update to mean the same thing, by stage.
RECIPE_SECTIONS = {
    "pretrain": ("data", "encoder", "augment", "pretrain", "gmml"),
    "classify": ("data", "encoder", "finetune", "classify"),
    "segment": ("data", "encoder", "finetune", "segment"),
}


def load(file: str | Path = "default", overrides: Sequence[str] = ()) -> Config:
    """Read a recipe on top of the defaults, then `key=value` overrides on top of both.

    Args:
        file: a shipped recipe by name (`demo`) or the path of a YAML file.
        overrides: dotted settings, e.g. `["pretrain.lr=1e-3"]`; values are YAML.

    Raises:
        ConfigError: unknown key (with the nearest known one), wrong type, or a value out of its range.
    """
    layers = [] if str(file) == "default" else [(str(file), _read(_find(file)))]
    layers += [(f"override '{item}'", _override(item)) for item in overrides]
    merged = copy.deepcopy(_defaults())
    for origin, layer in layers:
        _fill(merged, origin, layer)
    return _checked(merged)


def loads(text: str) -> Config:
    """The settings from the YAML text of a resolved config (as `dumps` wrote it).

    Raises:
        ConfigError: as for `load`.
    """
    return copy.deepcopy(_loaded(text))


@functools.lru_cache(maxsize=4)  # every message of a run carries the same text; reading it takes 50 ms
def _loaded(text: str) -> Config:
    if "${" in text:  # would be filled in from this machine's environment
        raise ConfigError("resolved config: '${' has no place in it")
    try:
        layer = OmegaConf.create(text)
    except Exception as error:
        raise ConfigError(f"resolved config: not readable as YAML ({type(error).__name__})") from None
    if not OmegaConf.is_dict(layer):
        raise ConfigError("resolved config: expected sections such as 'pretrain:', found a list")
    try:
        return _checked(OmegaConf.merge(OmegaConf.structured(Config), layer))
    except OmegaConfBaseException as error:
        raise ConfigError(f"resolved config: {_explain(error)}") from None


def dumps(config: Config) -> str:
    """The settings as YAML, complete and resolved."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def as_dict(config: Config) -> dict[str, Any]:
    """The settings as plain dictionaries and lists."""
    return asdict(config)


def split_overrides(text: str) -> list[str]:
    """One string of overrides, as `flwr run` carries it, cut as a shell would."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"overrides {text!r}: {error}; quote each value that has spaces") from None


def recipe(config: Config) -> dict[str, Any]:
    """The settings that have to be alike everywhere, by section."""
    whole = as_dict(config)
    run = {name: whole["run"][name] for name in ("stage", "threads", "compile")}
    return {"run": run} | {name: whole[name] for name in RECIPE_SECTIONS[config.run.stage]}


def recipe_hash(config: Config) -> str:
    """16 hex digits that agree where the settings of the objective, the model and its input agree."""
    return hashlib.sha256(json.dumps(recipe(config), sort_keys=True).encode()).hexdigest()[:16]


def known_keys() -> list[str]:
    """Every setting by its dotted name."""
    return list(_keys(Config))


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
    """The schema, filled from `configs/default.yaml`; whoever changes it copies it first."""
    schema = OmegaConf.structured(Config)
    _fill(schema, "configs/default.yaml", _read(_shipped("default")))
    return schema


def _fill(merged: Any, origin: str, layer: Any) -> None:
    try:
        for key, value in layer.items():
            if key in merged and not OmegaConf.is_dict(value):
                raise ConfigError(f"{origin}: {key!r} is a section of settings, not {_short(value)}")
        merged.merge_with(layer)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{origin}: {_explain(error)}") from None


def _read(path: Path) -> Any:
    try:
        layer = OmegaConf.load(path)
    except Exception as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    # OmegaConf takes a bare text for a key without a value.
    if not OmegaConf.is_dict(layer) or any(len(str(key).split()) != 1 for key in layer):
        raise ConfigError(f"{path}: expected sections such as 'pretrain:', found a bare value or a list")
    return layer


def _override(item: str) -> Any:
    key, sign, _ = item.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"override {item!r} is not of the form key=value, such as pretrain.lr=1e-3")
    try:
        return OmegaConf.from_dotlist([item])
    except Exception as error:
        raise ConfigError(f"override {item!r}: {' '.join(str(error).split())}") from None


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
        hint = f"did you mean {near[0]!r}?" if near else "docs/configuration.md has every one"
        return f"unknown setting {_short(key)}; {hint}"
    first_line = str(error).strip().splitlines()[0]
    return f"setting {key!r}: {first_line}" if key else first_line


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _checked(merged: Any) -> Config:
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(f"settings without a value: {', '.join(missing)}")
    config = cast(Config, OmegaConf.to_object(merged))
    config.run.compile = config.run.compile.lower()  # YAML's true is Python's True
    problem = ranges.problem(config)
    if problem:
        raise ConfigError(problem)
    return config
