"""`sscxr doctor` as a hospital and a coordinator run it: silent where all is well, and each fault one line."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import services
import typer
import yaml
from caches import make_cache
from cryptography.hazmat.primitives import serialization as forms
from dicoms import chest, dataset, save
from superlinks import Authority, SuperLink
from typer.testing import CliRunner

from client import commands
from sscxr import config as configs
from sscxr.federation import approval, wire
from sscxr.federation.join import PROBE, Join, Payload, installed

OVERRIDES = ["run.threads=1", "data.cache_size=96"]


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with (
        pytest.MonkeyPatch.context() as patch,
        SuperLink(Authority(tmp_path_factory.mktemp("ca"))).running(patch) as running,
    ):
        yield running


def write_join(file: Path, superlink: SuperLink, **other: Any) -> Path:
    config = configs.load("default", OVERRIDES)
    values: dict[str, Any] = {
        "federation": "lungs",
        "superlink": superlink.server.address,
        "ca": superlink.server.ca,
        "versions": installed(),
        "fingerprint": wire.fingerprint(configs.recipe_hash(config)),
        "recipe": yaml.safe_dump(approval.terms(config)),
        "payload": Payload(up_mb=43.0, down_mb=86.0),
        "deadline_s": 7200.0,
        "memory_gb": 0.1,
        "probe": PROBE,
        "issued": "2026-11-22",
    }
    Join(**values | other).write(file)
    return file


@pytest.fixture(scope="module")
def hospital(superlink: SuperLink, upright: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a healthy site, as `sscxr site init` sets it up, registered at the server."""
    folder = tmp_path_factory.mktemp("hospital")
    join = write_join(folder / "from-the-coordinator.yaml", superlink)
    done = run("site", "init", folder / "site", "--name", "a", "--join", join)
    assert done.exit_code == 0, done.output
    assert f"sscxr site approve {folder / 'site' / 'join.yaml'}" in done.output
    found = states(folder / "site" / "site.yaml")
    assert (found["approval"], found["service"]) == ("failed", "warning")
    done = run("site", "approve", folder / "site" / "join.yaml", "--yes")
    assert done.exit_code == 0, done.output
    key = forms.load_ssh_private_key((folder / "site" / "node-key").read_bytes(), None)
    superlink.register(key)  # type: ignore[arg-type]
    split = [0.1 if row % 4 == 0 else 0.9 for row in range(60)]
    groups = [f"c0ffee{row:010d}" for row in range(60)]
    make_cache(folder / "site" / "cache", upright, {"split": split, "group": groups})
    (folder / "export").mkdir()
    save(dataset(chest()), folder / "export" / "SECRET.dcm")
    file = folder / "site" / "site.yaml"
    with services.short_folder() as place:
        file.write_text(file.read_text().replace('socket: ""', f"socket: {place}/run/site.sock"))
        with services.in_a_thread(file, place / "run" / "site.sock"):
            yield folder


def run(*arguments: object) -> Any:
    app = typer.Typer()
    commands.add(app)
    return CliRunner().invoke(app, [str(one) for one in arguments])


def states(*arguments: object) -> dict[str, str]:
    done = run("doctor", *arguments, "--json")
    return {check["name"]: check["state"] for check in json.loads(done.stdout)}


def test_a_healthy_site_is_silent(hospital: Path) -> None:
    done = run("doctor", hospital / "site" / "site.yaml", "--files", hospital / "export")
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if not line.startswith(" ")]
    assert {line.split()[0] for line in lines} == {"ok"}
    assert re.findall(r"^ok +(\w+(?: \w+)?)  ", done.output, re.MULTILINE) == [
        *(
            "settings",
            "join file",
            "versions",
            "recipe",
            "approval",
            "policy",
            "service",
            "device",
            "memory",
            "threads",
            "disk",
        ),
        *("host name", "port", "certificate", "key file", "clock", "registration", "bandwidth"),
        *("files", "cache", "splits", "duplicates", "constant", "posture", "rounds"),
    ]
    assert "SECRET" not in done.output
    assert "c0ffee" not in done.output
    assert "MRN" not in done.output
    assert "view: PA 60" in done.output


def test_the_json_is_the_list_alone_without_counts_of_the_cache(hospital: Path) -> None:
    done = run("doctor", hospital / "site" / "site.yaml", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert all(set(check) == {"name", "state", "value", "advice"} for check in found)
    assert "view:" not in done.stdout


def test_the_coordinators_machine(superlink: SuperLink, tmp_path: Path) -> None:
    join = write_join(tmp_path / "join.yaml", superlink)
    found = states("--join", join, "--out", tmp_path / "runs")
    assert found == dict.fromkeys(
        ["join file", "versions", "recipe", "disk", "host name", "port", "certificate", "clock", "bandwidth"],
        "ok",
    )


@pytest.mark.slow
def test_the_exit_code_tells_the_worst(superlink: SuperLink, hospital: Path, tmp_path: Path) -> None:
    site = hospital / "site" / "site.yaml"
    warning = write_join(tmp_path / "w.yaml", superlink, versions=installed() | {"python": "3.99.0"})
    assert run("doctor", site, "--join", warning).exit_code == 1
    failure = write_join(tmp_path / "f.yaml", superlink, payload=Payload(up_mb=1e9, down_mb=1.0))
    assert run("doctor", site, "--join", failure).exit_code == 2
    assert states(site, "--join", failure)["bandwidth"] == "failed"


def test_what_rests_on_a_failed_check_is_left_out(
    superlink: SuperLink, hospital: Path, tmp_path: Path
) -> None:
    text = (hospital / "site" / "site.yaml").read_text()
    site = hospital / "site" / "elsewhere.yaml"
    site.write_text(text.replace(superlink.server.address, "localhost:9"))
    found = states(site)
    assert found["port"] == "failed"
    assert not found.keys() & {"certificate", "clock", "registration", "bandwidth"}
    assert found["cache"] == "ok"


def test_a_recipe_that_this_installation_does_not_know(superlink: SuperLink, tmp_path: Path) -> None:
    join = write_join(tmp_path / "join.yaml", superlink, recipe="gmml:\n  colour: blue")
    assert states("--join", join)["recipe"] == "failed"


@pytest.mark.parametrize("text", ["name: a", "nonsense: [", "name: ../a\ncache: c\nstate: s"])
def test_settings_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "site.yaml").write_text(text)
    done = run("doctor", tmp_path / "site.yaml")
    assert done.exit_code == 2
    assert done.output.startswith("failed   settings")


def test_a_join_file_that_cannot_be_read(hospital: Path, tmp_path: Path) -> None:
    (tmp_path / "join.yaml").write_text("federation: lungs")
    assert states(hospital / "site" / "site.yaml", "--join", tmp_path / "join.yaml")["join file"] == "failed"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no PEM", "not a PEM certificate"),
        ("Universität", "not a PEM certificate"),
        (None, "No such file"),
    ],
)
def test_a_ca_that_is_none(hospital: Path, tmp_path: Path, text: str | None, said: str) -> None:
    if text:
        (tmp_path / "ca").write_text(text, encoding="utf-8")
    site = hospital / "site" / "bad-ca.yaml"
    site.write_text(
        (hospital / "site" / "site.yaml").read_text().replace("ca: ca.crt", f"ca: {tmp_path / 'ca'}")
    )
    done = run("doctor", site, "--json")
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert found["server"]["state"] == "failed"
    assert said in found["server"]["value"]
    assert "certificate" not in found


def test_a_site_without_a_server_yet(hospital: Path) -> None:
    text = (hospital / "site" / "site.yaml").read_text()
    site = hospital / "site" / "early.yaml"
    site.write_text(re.sub(r"(?m)^(join|superlink|key): [^ ]+", r'\1: ""', text))
    found = states(site)
    assert found["join file"] == "warning"
    assert found["server"] == "warning"
    assert found["cache"] == "ok"


def test_something_must_be_named() -> None:
    done = run("doctor")
    assert done.exit_code == 2
    assert "give a SITE.yaml" in done.stderr


def test_a_check_that_breaks_is_a_line_without_its_text(
    hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("SECRET.dcm")

    monkeypatch.setattr("client.doctor.data.postures", broken)
    done = run("doctor", hospital / "site" / "site.yaml")
    assert done.exit_code == 2
    assert "could not be checked (RuntimeError)" in done.output
    assert "SECRET" not in done.output
