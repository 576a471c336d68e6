"""The command line: what a person types, and one line on stderr where it goes wrong."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from caches import make_cache

from sscxr.commands import cli
from sscxr.data.cache import store
from sscxr.data.phantoms import phantom


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return phantom.write(tmp_path_factory.mktemp("phantoms"), images=8, sites=1, seed=4, size=96)


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["sscxr", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_prepare_info_remove(
    manifests: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    code, out, _ = run(
        capsys, monkeypatch, "prepare", *manifests, "--out", cache, "--size", 64, "--workers", 0
    )
    assert code == 0
    assert "8 images" in out.replace("\n", " ")
    for word in ("phantom_site_0", "PA", "pneumonia", "masks", "quarantine.csv", "sheet.png"):
        assert word in out
    patient = manifests[0].read_text().splitlines()[1].split(",")[2]
    assert patient not in out
    code, out, err = run(capsys, monkeypatch, "cache", "remove", cache, "--patient", patient)
    assert (code, err) == (0, "")
    assert out.startswith("removed ")
    assert patient not in out
    with store.writing(cache):  # as `sscxr prepare` holds it while it decodes
        code, out, _ = run(capsys, monkeypatch, "cache", "info", cache)
    assert code == 0
    assert "8 images" not in out


def test_names_in_a_cache_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"label:[/b]": [1.0], "source": ["[bold]north"]}
    make_cache(tmp_path / "cache [old]", np.zeros((1, 16, 16), np.uint8), names)
    code, out, err = run(capsys, monkeypatch, "cache", "info", tmp_path / "cache [old]")
    assert (code, err) == (0, "")
    for name in ("[/b]", "[bold]north", "cache [old]"):
        assert name in out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("prepare", "{tmp}/nowhere", "--out", "{tmp}/cache"), "no such file or folder"),
        (("prepare", "{tmp}", "--out", "{tmp}/cache"), "no files in"),
        (("prepare", "{tmp}"), "--out"),
        (("prepare", "{tmp}", "--out", "{tmp}/cache", "--size", "4"), "16 to 4096"),
        (("prepare", "{tmp}", "--out", "{tmp}/cache", "--siz", "4"), "--siz"),
        (("cache", "info", "{tmp}"), "not a finished cache"),
        (("cache", "remove", "{tmp}", "--patient", "x"), "not a cache"),
        (("cache", "remove", "{tmp}"), "--patient ID"),
        (("nonsense",), "nonsense"),
    ],
)
def test_what_goes_wrong_is_one_line(
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, err = run(capsys, monkeypatch, *(word.format(tmp=tmp_path) for word in arguments))
    assert code != 0
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.slow
def test_the_module_runs_and_leaves_no_process(manifests: list[Path], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sscxr.commands.cli",
        "prepare",
        str(manifests[0]),
        "--out",
        str(tmp_path / "cache"),
    ]
    ended = subprocess.run(
        [*command, "--size", "64", "--workers", "2"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
