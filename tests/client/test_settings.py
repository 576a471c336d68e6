"""`site.yaml`: what `init` writes is read back, keeps a key to itself, and overwrites nothing."""

import dataclasses
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from omegaconf import OmegaConf

from client.settings import SiteError, SiteSettings, init, read_settings
from server.commands import describe
from sscxr.join import Join
from sscxr.wire import WireError


def test_what_init_writes_is_read_back_with_every_setting_in_it(tmp_path: Path) -> None:
    file = init(tmp_path / "site", name="hospital-a", cache="/data/cache")
    settings = read_settings(file)
    assert (settings.name, settings.cache) == ("hospital-a", "/data/cache")
    assert settings.state == str(tmp_path / "site" / "state")
    assert settings.key == str(tmp_path / "site" / "node-key")
    plain = dataclasses.replace(SiteSettings("hospital-a", settings.cache, settings.state), key=settings.key)
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
    with pytest.raises(SiteError, match="there already"):
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
        ("metrics: [loss]", "there are: held_out_loss, held_out_score, counts"),
        ("threads: -1", "threads=-1"),
        ("memory_gb: -1", "memory_gb=-1"),
        ("memory_gb: .nan", "memory_gb=nan"),
        ("min_cell: 0", "min_cell=0"),
        ("min_images: -5", "min_images=-5"),
        ("paused: maybe", "paused"),
        ("dp: {enabled: true}", "not implemented"),
        ("dp: {epsilon: 1}", "epsilon"),
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
