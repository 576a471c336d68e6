"""Encoders that come with sscxr: found by name from wherever one is, verified, listed as their cards have it."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from releases import before_numbers, key_files
from simulations import ROOT

import sscxr
from sscxr import config as configs
from sscxr import stages
from sscxr.commands import cli
from sscxr.errors import SscxrError
from sscxr.finetuning import finetuned
from sscxr.predict import neighbours
from sscxr.release import card, fetch, release, shipped, signing

MOST_MB = 12


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The encoder `small` is shipped; the current folder is another, and empty."""
    old = before_numbers(tmp_path / "old")
    folder = tmp_path / "encoders"
    folder.mkdir()
    (old / "release").rename(folder / "small")
    (old / "release.pub").rename(folder / shipped.KEY)
    monkeypatch.setattr(shipped, "home", lambda: folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def refused(source: str, says: str) -> None:
    with pytest.raises(SscxrError, match=says) as error:
        fetch.located(source)
    assert "\n" not in str(error.value)


def test_a_name_is_taken_wherever_an_encoder_is(home: Path) -> None:
    from sim.run import _located

    expected = release.load_encoder(home / "small").state_dict()
    assert fetch.located("small") == _located("small") == home / "small"
    settings = finetuned.encoder_settings(home / "small")
    config = configs.load("smoke", ["encoder.start=small", "gmml.blocks=[1]", *settings])
    tuning = ["encoder.start=small", "run.stage=classify", "classify.labels=[pneumonia]"]
    assert stages.load_config("smoke", tuning).encoder.name == "test_vit"
    found = [
        sscxr.load_encoder("small").state_dict(),
        neighbours.open_embedder("small").encoder.state_dict(),
        stages.of(config).start(),
    ]
    for state in found:
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_a_folder_that_holds_an_encoder_goes_first(home: Path) -> None:
    shutil.copytree(home / "small", "small")
    assert fetch.located("small") == Path("small")
    shutil.rmtree("small")
    Path("small").mkdir()  # an empty folder, or any other
    assert fetch.located("small") == home / "small"
    assert fetch.located("./small") == Path("small")
    shutil.copytree(home / "small", "small/encoder")  # a run
    refused(
        "small", r"'small' is a shipped encoder, and a folder here .*; small/encoder is one; give that path"
    )
    assert fetch.located("small/encoder") == Path("small/encoder")


def test_a_name_that_there_is_not(home: Path) -> None:
    shutil.copytree(home / "small", home / "smaller-2")
    shutil.copytree(home / "small", home / "wide")
    refused(
        "smal", r"nothing here has that name, and the shipped ones are: small, smaller-2, wide; .* 'small'\?"
    )
    with pytest.raises(SscxrError, match="no folder small; it comes with sscxr: use it by its name"):
        fetch.pull("small")
    refused("qqq", r"are: small, smaller-2, wide; give one of them, a folder or an address")
    for folder in ("small", "smaller-2", "wide"):
        shutil.rmtree(home / folder)
    refused("small", "this sscxr ships none; give a folder")
    Path("model.pth").write_bytes(b"")
    assert fetch.located("model.pth") == Path("model.pth")  # a start that is not a release
    with pytest.raises(SscxrError, match="nothing here has that name"):
        stages.of(configs.load("smoke", ["encoder.start=small"])).start()
    assert stages.load_config("smoke", ["encoder.start=gone", "run.stage=segment"])  # a stored run's


def test_what_was_altered_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(SscxrError, match="not this key's"):
        fetch.located("small", key=signing.read_public(key_files(tmp_path, "other")[1]))
    shutil.copyfile(tmp_path / "other.pub", home / shipped.KEY)
    refused("small", "not this key's")
    (home / shipped.KEY).unlink()
    refused("small", r"the key .*release\.pub: No such file")
    before_numbers(tmp_path / "again")
    shutil.copyfile(tmp_path / "again" / "release.pub", home / shipped.KEY)
    fetch.located("small")
    weights = bytearray((home / "small" / release.WEIGHTS).read_bytes())
    weights[-5] ^= 1
    (home / "small" / release.WEIGHTS).write_bytes(weights)
    refused("small", r"model\.safetensors is not the file that SHA256SUMS lists")


def test_the_list_is_the_cards(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sscxr", "encoder", "list", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert (ended.value.code or 0, err) == (0, "")
        return out

    assert run().splitlines() == [
        "small: test_vit, input 1x32x32, 0.2 MB (float32)",
        "  version   1.0, licence of the weights: CC-BY-4.0",
        "  data      at least 1,394 images at 3 sites; CC BY 4.0; CC BY 4.0, CC BY-NC-SA 4.0 **(NON-COMMERCIAL)**; "
        "not stated",
        "  probe     pneumonia paediatric linear: AUROC 0.912 (0.874 to 0.945), +0.111 (+0.062 to +0.160) over the "
        "untrained encoder",
    ]
    (one,) = json.loads(run("--json"))["encoders"]
    assert (one["name"], one["images"], one["sites"], one["sites_without_count"]) == ("small", 1394, 3, 1)
    assert one["probes"][0]["gain"] == "+0.111 (+0.062 to +0.160)"
    shutil.rmtree(home / "small")
    assert "ships no encoders" in run()
    assert json.loads(run("--json")) == {"encoders": []}


@pytest.mark.parametrize(
    "text", ["a|b", "a | b", r"a \| b", "<i>&amp;</i>", "`q` **b** (1-2)", "", "|", "\\"]
)
def test_a_cell_is_read_as_it_was_written(text: str) -> None:
    rows = [[card.escape(text), "7"], ["x", card.escape(text)]]
    table = "\n".join(card._table(["site", "images"], rows))
    found = card.read_table(f"# a\n\n## Data\n\n{table}\n\nText | more\n\n## Probes\n\nNone.\n", "Data")
    assert found == [{"site": text, "images": "7"}, {"site": "x", "images": text}]
    assert card.read_table("# a\n\n## Data\n\n| a | b |\n", "Data") == []


def unfit(folder: Path) -> list[str]:
    """What keeps a release out of `encoders/`, see the README there."""
    data = card.read_table((folder / release.CARD).read_text(encoding="utf-8"), "Data")
    megabytes = (folder / release.WEIGHTS).stat().st_size / 1e6
    return [
        *(["its card lists no data"] if not data else []),
        *(f"{row['site']}: {row['licences']}" for row in data if card.non_commercial(row["licences"])),
        *(f"{row['site']}: licence unknown" for row in data if row["licences"] == "not stated"),
        *([f"{megabytes:.0f} MB"] if megabytes > MOST_MB else []),
    ]


def test_what_is_shipped_may_be_and_loads(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [line.partition(":")[0] for line in unfit(home / "small")] == ["idc", "silent"]
    monkeypatch.undo()
    assert shipped.home() == ROOT / "encoders"
    for name in shipped.names():
        assert unfit(shipped.home() / name) == []
        assert release.stored_as(shipped.home() / name / release.WEIGHTS) == "float16"
        sscxr.load_encoder(name)


@pytest.mark.slow
def test_a_wheel_has_them(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    old = before_numbers(tmp_path / "old")
    tree, wheels, installed = tmp_path / "tree", tmp_path / "wheels", tmp_path / "installed"
    for part in ("sscxr", "client", "server", "sim", "configs", "encoders"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / file, tree / file)
    (old / "release").rename(tree / "encoders" / "small")
    shutil.copyfile(old / "release.pub", tree / "encoders" / shipped.KEY)
    wheels.mkdir()
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(wheels)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(installed)
    code = "import sscxr; print(sscxr.__file__, sscxr.load_encoder('small').num_features)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(installed / "sscxr" / "__init__.py"), "64"], done.stderr
