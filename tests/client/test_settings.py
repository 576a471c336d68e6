"""`site.yaml`: what `init` writes is read back and overwrites nothing; a mistake in it is one line."""

import dataclasses
import resource
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from omegaconf import OmegaConf

from client.settings import SiteError, SiteSettings, init, limit_memory, read_settings
from server.commands import describe
from sscxr.federation.join import Join
from sscxr.federation.wire import WireError


def test_what_init_writes_is_read_back_with_every_setting_in_it(tmp_path: Path) -> None:
    file = init(tmp_path / "site", name="hospital-a", cache="/data/cache")
    settings = read_settings(file)
    assert (settings.name, settings.cache) == ("hospital-a", "/data/cache")
    assert settings.state == str(tmp_path / "site" / "state")
    assert settings.key == str(tmp_path / "site" / "node-key")
    assert settings.identity == str(tmp_path / "site" / "identity-key")
    named = {"key": settings.key, "identity": settings.identity}
    plain = dataclasses.replace(SiteSettings("hospital-a", settings.cache, settings.state), **named)
    assert settings == plain, "what the file says by default is what holds without it"
    written = OmegaConf.load(file)
    assert set(written) == {item.name for item in dataclasses.fields(SiteSettings)} - {"groups"}


@pytest.mark.parametrize("name", ["007", "null", "1e3", "no"])
def test_a_name_that_looks_like_another_type_stays_a_name(tmp_path: Path, name: str) -> None:
    assert read_settings(init(tmp_path, name=name)).name == name


def test_the_key_is_a_p384_pair_that_its_owner_alone_can_read(tmp_path: Path) -> None:
    init(tmp_path, name="a")
    private, public = tmp_path / "node-key", tmp_path / "node-key.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key = serialization.load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert serialization.load_ssh_public_key(public.read_bytes()) == key.public_key()


def test_the_join_file_fills_in_the_way_to_the_server(tmp_path: Path) -> None:
    invitation = describe("smoke", [], name="trial", superlink="fed.example.org:443", ca=None)
    invitation.write(tmp_path / "invited.yaml")
    settings = read_settings(init(tmp_path / "site", name="a", join=tmp_path / "invited.yaml"))
    assert settings.superlink == "fed.example.org:443"
    assert settings.ca == "", "publicly trusted"
    assert Join.read(settings.join) == Join.read(tmp_path / "invited.yaml")


@pytest.mark.parametrize("there", ["site.yaml", "node-key", "node-key.pub"])
def test_nothing_that_is_there_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(SiteError, match="already exists"):
        init(tmp_path, name="a")
    assert [file.name for file in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"


def test_a_name_that_cannot_be_one_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(WireError, match="letters"):
        init(tmp_path / "site", name="St. Mary's")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("stages: [finetune]", "'finetune' is not known"),
        ("metrics: [loss]", "held_out_loss, held_out_score, counts"),
        ("threads: -1", "threads=-1"),
        ("memory_gb: -1", "memory_gb=-1"),
        ("memory_gb: nan", "memory_gb=nan"),
        ("min_cell: 0", "min_cell=0"),
        ("min_images: -5", "min_images=-5"),
        ("paused: maybe", "paused"),
        ("privacy: {epsilon: 8}", "without privacy.patients"),
        ("dp: {epsilon: 1}", "dp"),
        ("min_cells: 5", "min_cells"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(tmp_path: Path, line: str, word: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(f"name: a\ncache: c\nstate: s\n{line}\n")
    with pytest.raises(SiteError, match=word) as error:
        read_settings(file)
    assert "\n" not in str(error.value)
    assert error.value.failure == "settings"


def test_text_that_is_no_yaml_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("name: a\nstages: pretrain]\nmetrics: 'x' y\n")
    with pytest.raises(SiteError, match=r"not readable as YAML at line 3: "):
        read_settings(file)


def test_a_folder_in_place_of_the_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"a folder; name the file in it, .*site\.yaml"):
        read_settings(tmp_path)


def write(folder: Path, text: str) -> Path:
    file = folder / "site.yaml"
    file.write_text(text)
    return file


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, "name: a\ncache: c\nstate: /s\ngroups: g.txt\n"))
    assert settings == SiteSettings("a", str(tmp_path / "c"), "/s", str(tmp_path / "g.txt"))
    assert read_settings(write(tmp_path, "name: a\ncache: c\nstate: s\n")).groups == ""


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("name: a\nstate: s\n", "no value for cache"),
        ("", "no value for cache, name, state"),
        ("name: a\ncache: c\nstate: s\ncash: d\n", "cash"),
        ("name: a b\ncache: c\nstate: s\n", "1 to 64 letters"),
        ("name: ../a\ncache: c\nstate: s\n", "1 to 64 letters"),
        ("name: [a]\ncache: c\nstate: s\n", "site.yaml"),
        ("- a\n", "site.yaml"),
        ("name: [a\n", "not readable as YAML"),
        ("\x00", "not readable as YAML"),
    ],
)
def test_a_mistake_in_the_settings_is_one_line(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(SiteError, match=word) as error:
        read_settings(write(tmp_path, text))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert error.value.failure == "settings"


def test_settings_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"none\.yaml") as error:
        read_settings(tmp_path / "none.yaml")
    assert "\n" not in str(error.value)


def test_settings_that_changed_are_read_again_and_are_nobody_elses(tmp_path: Path) -> None:
    file = write(tmp_path, "name: a\ncache: c\nstate: s\n")
    first = read_settings(file)
    first.stages.append("classify")
    first.name = "b"
    assert read_settings(file) == SiteSettings("a", str(tmp_path / "c"), str(tmp_path / "s"))
    write(tmp_path, "name: a\ncache: d\nstate: s\n")
    assert read_settings(file).cache == str(tmp_path / "d")


def test_a_memory_limit_above_the_machine_s_own_is_the_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, 10**9))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, bounds: made.append(bounds))
    for gigabytes in (8.0, 0.5):
        limit_memory(SiteSettings("a", "c", "s", memory_gb=gigabytes))
    assert made == [(10**9, 10**9), (5 * 10**8, 10**9)]
