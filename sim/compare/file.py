"""The file of a comparison: cells (settings over a common base), seeds, a budget of views, what to measure."""

import copy
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sscxr import config as configs
from sscxr import stages
from sscxr.config import Config, ConfigError, yaml_text
from sscxr.config.yaml_text import Node, Scalar, YamlError
from sscxr.files import expanded
from sscxr.printable import PLAIN_NAME

TRAINED, UNTRAINED, ALONE = "trained", "untrained", "alone"
VALIDATION, TEST = "validation", "test"
FEDERATION = "federation"  # as `epochs` of a cell `alone`: each site has as many views as all together
# Entries of the file that may be given as NAME=VALUE, too.
_TYPED = (
    *("title", "base", "clients", "epochs", "seeds", "patients", "reference", "cohorts", "points"),
    "resamples",
)
NAMES = (*_TYPED, "settings", "cells")
_SPECIAL = ("clients", "partition", "untrained", "alone", "epochs")
# What the file sets otherwise, for all cells.
_SET_OTHERWISE = {
    "run.name": "the cell's name sets it",
    "run.seed": "`seeds` sets it",
    "run.stage": "a comparison is of pretraining",
    "federation.rounds": "`epochs` sets it",
    "federation.evaluate_every": "`points` sets it",
    "federation.sites": "`clients` sets it",
    "sim.partition": "`partition` sets it",
    "sim.file": "`partition: FILE.csv` sets it",
    "probe.cohorts": "`cohorts` sets it",
}
# Sections that every cell shares, since its figures would be of other images otherwise.
_SHARED = ("data.", "probe.")


@dataclass(frozen=True)
class Cell:
    """One setting to compare.

    Attributes:
        name: as in the file.
        folder: the name of its folder.
        kind: trained (a federation, or one place), untrained (probes alone), alone (each site of its own).
        clients: the number of virtual sites.
        epochs: views of each training image; None: as many views at each site as the federation has together.
        config: its settings, of the first seed.
    """

    name: str
    folder: str
    kind: str
    clients: int
    epochs: float | None
    config: Config

    def settings(self, seed: int, rounds: int | None = None) -> Config:
        """Return the settings of one run.

        Args:
            rounds: other rounds than the cell's.
        """
        config = copy.deepcopy(self.config)
        config.run.seed = seed
        if rounds is not None:
            every = config.federation.evaluate_every
            points = config.federation.rounds / every if every else 0
            config.federation.rounds = rounds
            config.federation.evaluate_every = max(1, round(rounds / points)) if points else 0
        return config


@dataclass(frozen=True)
class Plan:
    """A comparison as its file states it.

    Attributes:
        name: the file's, without its ending.
        title: the heading of the report.
        base: the settings that all cells share.
        clients: the number of virtual sites where a cell states no other.
        epochs: the budget, views of each training image.
        seeds: of the runs; each cell runs once for each.
        patients: validation or test.
        reference: the name of the cell that the others are compared with.
        resamples: of the bootstrap.
        cells: in the file's order.
    """

    name: str
    title: str
    base: Config
    clients: int
    epochs: float
    seeds: tuple[int, ...]
    patients: str
    reference: str
    resamples: int
    cells: tuple[Cell, ...]

    def with_cohorts(self, cohorts: Mapping[str, Sequence[str]]) -> "Plan":
        """Return the plan with these cohorts to probe, unless its file names some."""
        if self.base.probe.cohorts:
            return self
        changed = copy.deepcopy(self)
        for config in (changed.base, *(cell.config for cell in changed.cells)):
            config.probe.cohorts = {name: list(sources) for name, sources in cohorts.items()}
        return changed


def read(file: str, overrides: Sequence[str] = ()) -> Plan:
    """Read the file of a comparison.

    Args:
        file: a shipped one by name, or a path.
        overrides: `section.name=value` for the settings of every cell; `name=value` for an entry of the file.

    Raises:
        ConfigError: one line states what is wrong, and where.
    """
    path = _find(file)
    found = _parsed(str(path), configs.text_of(path))
    more = []
    for item in overrides:
        key, sign, text = item.partition("=")
        if "." in key or not sign:
            more.append(item)
        elif key in _TYPED:
            found[key] = _parse(f"override {item!r}", text)
        else:
            raise ConfigError(f"override {item!r}: not an entry of a comparison: {', '.join(_TYPED)}")
    try:
        return _plan(path.stem, found, more)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _find(file: str) -> Path:
    path = expanded(file)
    if path.is_file():
        return path
    folder = Path(str(resources.files("configs") / "compare"))
    shipped = folder / f"{file}.yaml"
    if len(Path(file).parts) == 1 and shipped.is_file():
        return shipped
    names = ", ".join(sorted(entry.stem for entry in folder.glob("*.yaml")))
    raise ConfigError(f"no comparison {file!r}; give a YAML file, or one of the shipped ones: {names}")


def _parsed(origin: str, text: str) -> dict[str, Node]:
    found = _parse(origin, text)
    if not isinstance(found, dict):
        raise ConfigError(f"{origin}: expected lines such as 'epochs: 10', found a bare value or a list")
    for key in found:
        if key not in NAMES:
            raise ConfigError(f"{origin}: unknown entry {key!r}; {_near(key, NAMES)}")
    return found


def _parse(origin: str, text: str) -> Node:
    try:
        return yaml_text.parse(text) if text.strip() else Scalar("")
    except YamlError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _plan(name: str, found: Mapping[str, Node], more: Sequence[str]) -> Plan:
    base, clients = _text(found, "base", "demo"), _whole("clients", found.get("clients", Scalar("8")), 1)
    epochs = _number("epochs", _needed(found, "epochs"))
    seeds = tuple(_whole("seeds", node, 0) for node in _list("seeds", found.get("seeds", [Scalar("0")])))
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds={list(seeds)}: name at least one, and each once")
    patients = _text(found, "patients", VALIDATION)
    if patients not in (VALIDATION, TEST):
        raise ConfigError(f"patients={patients!r} is neither {VALIDATION} nor {TEST}")
    points = _whole("points", found.get("points", Scalar("8")), 1)
    settings = _settings("settings", found.get("settings", {}))
    shared = [*settings, *more, *_cohorts(found.get("cohorts", {}))]
    cells = _cells(_needed(found, "cells"), base, shared, clients, epochs, points, seeds[0])
    names = [cell.name for cell in cells]
    reference = _text(found, "reference", names[0])
    if reference not in names:
        raise ConfigError(f"reference={reference!r} is not a cell; {_near(reference, names)}")
    return Plan(
        name=name,
        title=_text(found, "title", name),
        base=_loaded(base, shared),
        clients=clients,
        epochs=epochs,
        seeds=seeds,
        patients=patients,
        reference=reference,
        resamples=_whole("resamples", found.get("resamples", Scalar("2000")), 1),
        cells=tuple(cells),
    )


def _cells(
    node: Node, base: str, shared: Sequence[str], clients: int, epochs: float, points: int, seed: int
) -> list[Cell]:
    if not isinstance(node, dict) or not node:
        raise ConfigError("cells: expected lines such as 'iid sites: {partition: iid}'")
    cells: list[Cell] = []
    for name, content in node.items():
        try:
            cell = _cell(name, content, base, shared, clients, epochs, points, seed)
        except ConfigError as error:
            raise ConfigError(f"cell {name!r}: {error}") from None
        same = next((one.name for one in cells if one.folder == cell.folder), None)
        if same is not None:
            raise ConfigError(
                f"cells {same!r} and {name!r} would have the same folder, {cell.folder}; rename one"
            )
        cells.append(cell)
    return cells


def _cell(
    name: str,
    node: Node,
    base: str,
    shared: Sequence[str],
    clients: int,
    epochs: float,
    points: int,
    seed: int,
) -> Cell:
    folder = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-._")
    if not PLAIN_NAME.fullmatch(folder):
        raise ConfigError("its name has no letter or digit, or is longer than 64 characters; rename it")
    if isinstance(node, Scalar) and node.is_null:
        node = {}
    if not isinstance(node, dict):
        raise ConfigError("expected settings, such as {partition: iid}")
    special = {key: value for key, value in node.items() if key in _SPECIAL}
    overrides = _settings("", {key: value for key, value in node.items() if key not in _SPECIAL})
    kinds = [kind for kind in (UNTRAINED, ALONE) if kind in special and _true(kind, special[kind])]
    if len(kinds) > 1:
        raise ConfigError("untrained and alone exclude each other")
    kind = kinds[0] if kinds else TRAINED
    if kind == UNTRAINED and "epochs" in special:
        raise ConfigError("an untrained cell has no epochs")
    if (given := special.get("epochs")) is not None:
        of_federation = kind == ALONE and isinstance(given, Scalar) and given.text == FEDERATION
        views = None if of_federation else _number("epochs", given)
    else:
        views = epochs
    own = [*_partition(special.get("partition")), f"run.name={folder}", f"run.seed={seed}"]
    config = _loaded(base, [*shared, *overrides, *own])
    if not config.pretrains:
        raise ConfigError(f"run.stage={config.run.stage}: a comparison is of pretraining")
    rounds = 1 if kind == UNTRAINED else rounds_of(epochs if views is None else views, config)
    config.federation.rounds = rounds
    config.federation.evaluate_every = max(1, rounds // points)
    sites = _whole("clients", special["clients"], 1) if "clients" in special else clients
    return Cell(name, folder, kind, sites, views, config)


def rounds_of(epochs: float, config: Config) -> int:
    """Return the rounds that give each image so many views.

    Raises:
        ConfigError: not a whole number.
    """
    local = config.federation.local_epochs
    rounds = epochs / local
    if abs(rounds - round(rounds)) > 1e-6 * max(1.0, rounds) or round(rounds) < 1:
        raise ConfigError(
            f"epochs={epochs:g} are {rounds:g} rounds of federation.local_epochs={local:g}; give a multiple, such "
            f"as epochs={max(1, round(rounds)) * local:g}"
        )
    return round(rounds)


def _loaded(base: str, overrides: Sequence[str]) -> Config:
    config = configs.load(base, overrides)
    stages.of(config)  # checks the method's own settings
    return config


def _settings(where: str, node: Node) -> list[str]:
    """Return `section.name: value` lines as overrides."""
    place = f"{where}: " if where else ""
    if not isinstance(node, dict):
        raise ConfigError(f"{place}expected settings, such as {{pretrain.lr: 1.0e-3}}")
    found = []
    for key, value in node.items():
        if "." not in key:
            raise ConfigError(f"{place}unknown key {key!r}; {_near(key, (*_SPECIAL, *configs.known_keys()))}")
        if key in _SET_OTHERWISE:
            raise ConfigError(f"{place}{key}: {_SET_OTHERWISE[key]}")
        if not where and key.startswith(_SHARED):
            raise ConfigError(f"{key}: all cells have the same; state it in `settings`")
        if isinstance(value, Scalar):
            empty = "null" if value.plain else "''"
            found.append(f"{key}={value.text or empty}")
        else:
            found.append(f"{key}={_flow(value)}")
    return found


def _flow(node: Node) -> str:
    """Return a list or a mapping as an override gives it."""
    if isinstance(node, Scalar):
        return "'" + node.text.replace("'", "''") + "'"
    if isinstance(node, list):
        return f"[{', '.join(map(_flow, node))}]"
    return "{" + ", ".join(f"{_flow(Scalar(key))}: {_flow(value)}" for key, value in node.items()) + "}"


def _partition(node: Node | None) -> list[str]:
    if node is None:
        return []
    if not isinstance(node, Scalar) or not node.text:
        raise ConfigError("partition: expected a name, such as iid, or a FILE.csv")
    if node.text.endswith(".csv"):
        path = expanded(node.text).resolve()
        if not path.is_file():
            raise ConfigError(f"partition: no file {node.text!r}")
        return ["sim.partition=file", configs.setting("sim.file", str(path))]
    return [configs.setting("sim.partition", node.text)]


def _cohorts(node: Node) -> list[str]:
    if isinstance(node, Scalar) and node.is_null:
        return []
    if not isinstance(node, dict) or not all(isinstance(sources, list) for sources in node.values()):
        raise ConfigError("cohorts: expected lines such as 'nih: [nih_cxr14]'")
    return [f"probe.cohorts={_flow(node)}"] if node else []


def _needed(found: Mapping[str, Node], key: str) -> Node:
    if key not in found:
        raise ConfigError(f"{key!r} is missing")
    return found[key]


def _text(found: Mapping[str, Node], key: str, usual: str) -> str:
    node = found.get(key, Scalar(usual))
    if not isinstance(node, Scalar) or not node.text.strip():
        raise ConfigError(f"{key}: expected a text")
    return " ".join(node.text.split())


def _list(key: str, node: Node) -> list[Node]:
    if not isinstance(node, list):
        raise ConfigError(f"{key}: expected a list, such as [0, 1, 2]")
    return node


def _number(key: str, node: Node) -> float:
    try:
        value = float(node.text) if isinstance(node, Scalar) else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        shown = node.text if isinstance(node, Scalar) else type(node).__name__
        raise ConfigError(f"{key}={shown}: expected a number above 0")
    return value


def _whole(key: str, node: Node, least: int) -> int:
    text = node.text if isinstance(node, Scalar) else type(node).__name__
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
        raise ConfigError(f"{key}={text}: expected a whole number from {least}")
    return int(text)


def _true(key: str, node: Node) -> bool:
    if not isinstance(node, Scalar) or node.text not in ("true", "false"):
        raise ConfigError(f"{key}: expected true or false")
    return node.text == "true"


def _near(word: str, known: Sequence[str]) -> str:
    near: list[Any] = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known[:12])}"
