"""The join file: read as it was written, and each thing that can be wrong said in one line."""

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest
from joins import a_join

from sscxr.federation.join import Join, JoinError, Payload


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ca")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    files = ["-keyout", str(folder / "key"), "-out", str(folder / "ca.crt"), "-subj", "/CN=a test"]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return (folder / "ca.crt").read_text()


def test_it_is_read_as_it_was_written(tmp_path: Path, ca: str) -> None:
    for join in (a_join(), a_join(ca=ca.strip()), a_join(superlink="[::1]:8443")):
        join.write(tmp_path / "join.yaml")
        assert Join.read(tmp_path / "join.yaml") == join
    assert (join.host, join.port) == ("::1", 8443)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"federation": "../x"}, "plain name"),
        ({"superlink": "https://fl.example.org:8443"}, "not host:port"),
        ({"superlink": "fl.example.org:99999"}, "not host:port"),
        ({"ca": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"}, "not a PEM certificate"),
        ({"ca": "# Universitätsklinikum"}, "not a PEM certificate"),
        ({"versions": {"flwr": "1.41"}}, "versions are of flwr"),
        ({"fingerprint": "0123"}, "not a JSON object"),
        ({"recipe": "just a text"}, "not YAML of settings"),
        ({"payload": Payload(up_mb=-1.0, down_mb=1.0)}, "payload.up_mb=-1.0"),
        ({"deadline_s": 0.0}, "deadline_s=0"),
        ({"memory_gb": float("nan")}, "memory_gb=nan"),
        ({"probe": "http://elsewhere/"}, "is not a path"),
        ({"issued": "yesterday"}, "not an ISO date"),
    ],
)
def test_what_cannot_be_is_not_written(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(JoinError, match=said):
        a_join(**change).write(tmp_path / "join.yaml")
    assert not (tmp_path / "join.yaml").exists()


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("federation: ", "federaton: ", "not a join file"),
        ('issued: "2026-11-22"\n', "", "no value for issued"),
        ("deadline_s: 7200.0", "deadline_s: soon", "not a join file"),
        ("deadline_s: 7200.0", "deadline_s: -3", "deadline_s=-3"),
        ('"lungs"', '"${oc.env:HOME}"', "has no place in it"),
        ("payload:", "payload: [", "not a join file"),
    ],
)
def test_a_damaged_file_is_said_in_one_line(tmp_path: Path, was: str, becomes: str, said: str) -> None:
    file = tmp_path / "join.yaml"
    a_join().write(file)
    text = file.read_text()
    assert was in text
    file.write_text(text.replace(was, becomes))
    with pytest.raises(JoinError, match=said) as caught:
        Join.read(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(JoinError, match="No such file"):
        Join.read(tmp_path / "absent.yaml")
    with pytest.raises(JoinError, match="Is a directory"):
        Join.read(tmp_path)
    (tmp_path / "picture").write_bytes(b"\xff\xd8" * 100)
    with pytest.raises(JoinError, match="not a text"):
        Join.read(tmp_path / "picture")
    (tmp_path / "huge").write_bytes(b" " * 1_000_001)
    with pytest.raises(JoinError, match="too many"):
        Join.read(tmp_path / "huge")
    (tmp_path / "empty").write_text("")
    with pytest.raises(JoinError, match="not a join file: no value for"):
        Join.read(tmp_path / "empty")


def test_every_value_is_in_the_file(tmp_path: Path) -> None:
    a_join().write(tmp_path / "join.yaml")
    text = (tmp_path / "join.yaml").read_text()
    assert all(f"\n{item.name}:" in text for item in dataclasses.fields(Join))
