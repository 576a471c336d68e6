"""`sscxr evaluate`, `compare`, `predict`, `embed`, `similar` as typed: JSON alone, one line where it goes wrong."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import releases
from caches import make_cache
from marks import slow
from PIL import Image
from tuned import make_model

from sscxr.commands import cli
from sscxr.finetuning import finetuned

pytestmark = pytest.mark.usefixtures("any_posture")


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["sscxr", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 30 images, a model, a damaged one, a pickle, an empty folder, two pictures, one cut off."""
    place = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 256, (30, 32, 32), dtype=np.uint8)
    index = {"label:pneumonia": np.arange(30) % 2.0, "group": [f"g{one // 2}" for one in range(30)]}
    make_cache(place / "cache", squares, index)
    make_model(place / "model", **{finetuned.TRAINED_ON: "group,part\ng0,train\n"})
    make_model(place / "damaged")
    weights = bytearray((place / "damaged" / finetuned.WEIGHTS).read_bytes())
    weights[-5] ^= 1
    (place / "damaged" / finetuned.WEIGHTS).write_bytes(weights)
    (place / "pickled").mkdir()
    (place / "pickled" / "model.pt").write_bytes(pickle.dumps({}))
    (place / "empty").mkdir()
    y, x = np.mgrid[0:100, 0:90]
    grey = (120 + 60 * np.sin(x / 9) + 40 * np.cos(y / 7) + rng.normal(0, 4, x.shape)).clip(0, 255)
    Image.fromarray(grey.astype(np.uint8)).save(place / "chest.png")
    (place / "cut.png").write_bytes((place / "chest.png").read_bytes()[:900])
    return place


def test_evaluate_prints_json_alone(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run(
        capsys, monkeypatch, "evaluate", place / "model", "--data", place / "cache", "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert err == "note: left out: 2 images of 1 patients that it was trained on\n"
    assert set(found["auroc"]) == {"value", "low", "high", "n"}
    assert found["n"] == found["auroc"]["n"] == 28
    code, out, _ = run(capsys, monkeypatch, "evaluate", place / "model", "--data", place / "cache")
    assert code == 0
    assert all(word in out for word in ("auroc", "sensitivity", "95 % interval", "source", "patients  with"))


def test_names_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    squares = np.random.default_rng(0).integers(0, 256, (8, 32, 32), dtype=np.uint8)
    index = {"label:low": np.arange(8) % 2.0, "label:left [/x]": np.arange(8) % 2.0, "source": "[ward]"}
    make_cache(tmp_path / "cache", squares, index)
    make_model(tmp_path / "model", labels=["low", "left [/x]"])
    code, out, err = run(capsys, monkeypatch, "evaluate", tmp_path / "model", "--data", tmp_path / "cache")
    assert (code, err) == (0, "")
    assert "auroc:left [/x]" in out
    assert "[ward]" in out


def test_compare(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = (place / "model", place / "model", "--data", place / "cache")
    code, out, _ = run(capsys, monkeypatch, "compare", *pair, "--json")
    assert code == 0
    assert json.loads(out)["auroc"] == {"value": 0, "low": 0, "high": 0, "n": 28, "p": 1}
    assert "A - B" in run(capsys, monkeypatch, "compare", *pair)[1]


def test_predict_goes_on_and_fails_at_the_end(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (place / "cut.png", place / "nowhere.dcm", place / "chest.png")
    code, out, err = run(capsys, monkeypatch, "predict", place / "model", *files, "--out", tmp_path / "out")
    assert code == 1
    assert out == f"{tmp_path}/out/predictions.csv: 1 of 3 files\n"
    assert [line.split(": ")[1] for line in err.splitlines()] == ["truncated", "no such file or folder"]
    assert pd.read_csv(tmp_path / "out" / "predictions.csv")["pneumonia"].notna().tolist() == [
        False,
        False,
        True,
    ]
    code, _, err = run(
        capsys, monkeypatch, "predict", place / "model", place / "chest.png", "--out", tmp_path / "fine"
    )
    assert (code, err) == (0, "")


@pytest.mark.parametrize("kind", ["model", slow("encoder")])
def test_embed_and_similar(
    place: Path,
    tmp_path: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = place / "model" if kind == "model" else releases.write(tmp_path / "encoder")
    tables = []
    for what in (("--data", place / "cache"), (place / "chest.png",)):
        asked = ("embed", source, *what, "--out", tmp_path / "features.csv")
        if tables:
            code, out, err = run(capsys, monkeypatch, *asked)
            assert (code, out) == (1, "")
            assert "give --force" in err
        code, out, err = run(capsys, monkeypatch, *asked, "--force")
        assert (code, err) == (0, "")
        tables.append(pd.read_csv(tmp_path / "features.csv"))
        assert out == f"{tmp_path}/features.csv: {len(tables[-1])} rows of 192 features\n"
    assert list(tables[0].columns[:2]) == ["image", "f0"]
    assert tables[1]["file"].tolist() == [str(place / "chest.png")]
    assert np.isfinite(tables[0].drop(columns="image").to_numpy()).all()
    # One of the cache's own images is nearest to itself.
    squares = np.load(place / "cache" / "images.npy")
    Image.fromarray(squares[17].repeat(2, 0).repeat(2, 1)).save(tmp_path / "own.png")
    asked = (tmp_path / "own.png", "--encoder", source, "--in", place / "cache", "--number", 3)
    code, out, _ = run(capsys, monkeypatch, "similar", *asked, "--out", tmp_path / "sheet.png")
    assert code == 0
    first = out.splitlines()[1].split()
    assert first[1] == "17"
    assert Image.open(tmp_path / "sheet.png").size == (4 * 132 + 4, 146 + 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate", "{}/nowhere", "--data", "{}/cache"), "not a fine-tuned model"),
        (("evaluate", "{}/damaged", "--data", "{}/cache"), "SHA256SUMS"),
        (("evaluate", "{}/pickled", "--data", "{}/cache"), "pickle"),
        (("evaluate", "{}/model", "--data", "{}/empty"), "not a finished cache"),
        (("evaluate", "{}/model", "--data", "{}/cache", "--source", "x"), "its sources: a"),
        (("evaluate", "{}/model"), "--data"),
        (("compare", "{}/model", "{}/empty", "--data", "{}/cache"), "is not a released encoder"),
        (("predict", "{}/model", "{}/empty", "--out", "{}/new"), "no files in"),
        (("predict", "{}/cache", "{}/chest.png", "--out", "{}/new"), "not a fine-tuned model"),
        (("predict", "{}/model", "{}/chest.png", "--out", "{}/cache"), "other than predictions"),
        (("predict", "{}/model", "{}/chest.png", "--out", "{}/chest.png"), "is a file"),
        (("predict", "{}/model", "{}/chest.png", "--out", "{}/new", "--dicom-seg"), "made to segment"),
        (("embed", "{}/model", "--out", "{}/f.csv"), "either FILES, or --data"),
        (("embed", "{}/model", "{}/cut.png", "--out", "{}/f.csv"), "truncated"),
        (("embed", "{}/pickled", "{}/chest.png", "--out", "{}/f.csv"), "pickle"),
        (("embed", "{}/nowhere", "{}/chest.png", "--out", "{}/f.csv"), "no such folder"),
        (("encoder", "export", "{}/model", "--onnx", "{}/e.onnx"), "is a fine-tuned model; give the encoder"),
        (("encoder", "info", "{}/model"), "is a fine-tuned model; give the encoder"),
        (
            ("similar", "{}/cut.png", "--encoder", "{}/model", "--in", "{}/cache", "--out", "{}/s.png"),
            "truncated",
        ),
        (
            ("similar", "{}/empty", "--encoder", "{}/model", "--in", "{}/cache", "--out", "{}/s.png"),
            "name one file",
        ),
        (
            ("similar", "{}/nix", "--encoder", "{}/model", "--in", "{}/cache", "--out", "{}/s.png"),
            "no such file",
        ),
        (
            ("similar", "{}/chest.png", "--encoder", "{}/model", "--in", "{}/cache", "--out", "{}/s.txt"),
            ".png",
        ),
        (
            ("similar", "{}/chest.png", "--encoder", "{}/model", "--in", "{}/empty", "--out", "{}/s.png"),
            "cache",
        ),
    ],
)
def test_what_goes_wrong_is_one_line(
    place: Path,
    arguments: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, err = run(capsys, monkeypatch, *(part.format(place) for part in arguments))
    assert (code, out) == (2 if "--help" in err else 1, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert words in err
    assert not (place / "new").exists()
