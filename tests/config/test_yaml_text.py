"""YAML as it was written: texts stay texts, nothing is filled in for somebody else, nothing grows without bound."""

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from joins import a_join

from client.settings import init, read_settings
from sscxr import config as configs
from sscxr.config import ConfigError, yaml_text
from sscxr.config.yaml_text import YamlError
from sscxr.federation.join import Join, JoinError

# What YAML 1.1 takes for a number, a truth, a date or nothing.
ODD = (
    "007",
    "0012",
    "1e3",
    "1_000",
    "no",
    "on",
    "y",
    "true",
    "null",
    "~",
    "2026-11-29",
    "1:30",
    "0x1F",
    ".inf",
    "-",
)


@dataclass
class Schema:
    name: str = ""
    maybe: str | None = None
    count: int = 0
    rate: float = 0.0
    sure: bool = False
    names: list[str] = field(default_factory=list)
    groups: dict[str, list[str]] = field(default_factory=dict)


# ---- texts


@pytest.mark.parametrize("text", ODD)
def test_a_text_is_the_text_that_was_written(text: str) -> None:
    quoted = f"'{text}'" if text == "-" else text  # "-" begins a list
    lines = f"name: {quoted}\nnames: [{quoted}]\ngroups: {{{quoted}: [{quoted}]}}\n"
    read = yaml_text.load(Schema, lines, foreign=True)
    assert (read.name, read.names, read.groups) == (text, [text], {text: [text]})
    assert yaml_text.load(Schema, yaml_text.dump(dataclasses.asdict(read)), foreign=True) == read
    config = configs.load("default", [f"encoder.name={text}", f"classify.labels=[{quoted}]"])
    assert (config.encoder.name, config.classify.labels) == (text, [text])
    assert configs.loads(configs.dumps(config)) == config
    assert configs.load("default", [configs.setting("encoder.start", text)]).encoder.start == text


def test_a_text_in_an_override_keeps_its_colons_hashes_and_stars() -> None:
    for text in ("C: disk", "a #1", "*best", "[x", "a, b", "{", "%", "it's"):
        assert configs.load("default", [f"encoder.start={text}"]).encoder.start == text
    assert configs.load("default", ["encoder.start='null'"]).encoder.start == "null"
    assert configs.load("default", ["encoder.start=null"]).encoder.start is None


def test_numbers_and_truths_are_what_they_were() -> None:
    read = yaml_text.load(Schema, "count: 12\nrate: 1e-3\nsure: on\nmaybe: null\n", foreign=True)
    assert (read.count, read.rate, read.sure, read.maybe) == (12, 1e-3, True, None)
    assert yaml_text.load(Schema, "count: 010", foreign=True).count == 10, "not YAML's octal 8"
    for line in (
        "count: 1:30",
        "count: 1.5",
        "sure: 2026-11-29",
        "rate: fast",
        "name: [a]",
        "names: a",
        "count:",
    ):
        with pytest.raises(YamlError, match=line.split(":")[0]):
            yaml_text.load(Schema, line, foreign=True)


# ---- references


@pytest.mark.parametrize("written", ["${oc.env:HOME}", '"\\x24{oc.env:HOME}"', '"\\u0024\\x7boc.env:HOME}"'])
def test_nothing_is_filled_in_for_somebody_else(tmp_path: Path, written: str) -> None:
    text = configs.dumps(configs.load("smoke"))
    for evil in (
        text.replace("start: null", f"start: {written}"),
        text.replace(
            "cohorts: {}",
            f"cohorts: {{{written if written[0] == chr(34) else chr(34) + written + chr(34)}: [a]}}",
        ),
    ):
        assert evil != text
        with pytest.raises(ConfigError, match="has no place in it"):
            configs.loads(evil)
        (tmp_path / "config.yaml").write_text(evil)
        with pytest.raises(ConfigError, match="has no place in it"):
            configs.load(tmp_path / "config.yaml", foreign=True)
    a_join().write(tmp_path / "join.yaml")
    for old in ('"fl.example.org:8443"', '"/v1/probe"', '"lungs"', '"2026-11-22"'):
        whole = (tmp_path / "join.yaml").read_text()
        (tmp_path / "evil.yaml").write_text(whole.replace(old, written))
        with pytest.raises(JoinError, match="has no place in it"):
            Join.read(tmp_path / "evil.yaml")
    with pytest.raises(JoinError, match="not YAML of settings"):
        a_join(recipe=f"encoder:\n  start: {written}").write(tmp_path / "other.yaml")


def test_a_hospital_s_own_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "${oc.env:HOME}" / "a\\${b}"
    settings = read_settings(init(folder, name="a", cache=str(folder / "cache")))
    assert settings.cache == str(folder / "cache")
    assert settings.state == str(folder / "state")


def test_a_config_never_resolves_what_came_from_data() -> None:
    config = configs.load("smoke")
    config.probe.cohorts = {"phantoms": ["${oc.env:HOME}"]}  # a source of a manifest
    assert "${oc.env:HOME}" in configs.dumps(config)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["pretrain.lr=${oc.env:NOT_SET}"], ("'pretrain.lr'", "NOT_SET", "not found")),
        (
            ["pretrain.lr=${pretrain.min_lr}", "pretrain.min_lr=${pretrain.lr}"],
            ("'pretrain.lr'", "Recursive"),
        ),
        (["pretrain.lr=${nothing.there}"], ("'pretrain.lr'", "nothing.there")),
        (["pretrain.lr=${open"], ("'pretrain.lr'", "${open")),
        (["gmml.blocks=['${oc.env:NOT_SET}']"], ("'gmml.blocks.0'", "NOT_SET")),
        ([configs.setting("encoder.start", "/x/${a}")], ("encoder.start", "rename")),
    ],
)
def test_a_reference_that_leads_nowhere_names_its_setting(
    overrides: list[str], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ConfigError) as error:
        configs.load("smoke", overrides)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_a_person_s_own_recipe_may_refer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "0.125")
    (tmp_path / "own.yaml").write_text("pretrain:\n  lr: ${oc.env:RATE}\n  min_lr: ${pretrain.lr}\n")
    config = configs.load(tmp_path / "own.yaml")
    assert (config.pretrain.lr, config.pretrain.min_lr) == (0.125, 0.125)
    assert configs.loads(configs.dumps(config)) == config


# ---- what is not a text of settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [x, x]\nb: [*a, *a]", "line 1: anchors and aliases"),
        ("a: 1\nb: 2\na: 3", "line 3: 'a' is there twice"),
        ("a: {b: 1, 'b': 2}", "'b' is there twice"),
        ("a: !!python/object/apply:os.system [x]", "the tag"),
        ("a: !!binary aGk=", "the tag"),
        ("a: 1\n---\nb: 2", "more than one document"),
        ("? [a, b]\n: 1", "a key is a single name"),
        ("[" * 100_000, "levels"),
        ("{a: " * 100_000, "levels"),
        ("[" + "1," * 200_000 + "]", "values"),
        ("a: " + "x" * 1_000_000, "too many"),
        ("a: 1\nb: [\n", "not readable as YAML at line 3"),
        ("a: \ud800", "not readable as YAML"),
        ("a: \x07", "not readable as YAML"),
    ],
)
def test_what_is_refused_is_refused_at_once_and_in_one_line(text: str, words: str) -> None:
    began = time.process_time()
    with pytest.raises(YamlError) as error:
        yaml_text.parse(text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("text", ["[a]", "a", "3", "null"])
def test_what_is_not_a_mapping_is_refused(text: str) -> None:
    with pytest.raises(YamlError, match="bare value or a list"):
        yaml_text.load(Schema, text, foreign=True)
