"""A fine-tuning from a command to its folder: learned, judged on others, twice the same; bad input is one line."""

import json
import sys
from pathlib import Path

import finetunings
import numpy as np
import pandas as pd
import pytest
import releases

from sscxr import config as configs
from sscxr.commands import cli
from sscxr.data.cache.cache import Cache, open_cache
from sscxr.finetuning import finetuned, tune
from sscxr.finetuning.tune import Job, Tuned


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return releases.write(tmp_path_factory.mktemp("release") / "encoder")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return finetunings.spotted(tmp_path_factory.mktemp("data") / "cache", each=3)


def learn(
    encoder: Path,
    cache: Cache,
    out: Path,
    *overrides: str,
    labels: tuple[str, ...] = ("spot",),
    **job: object,
) -> Tuned:
    config = finetunings.settings(encoder, *overrides, labels=labels)
    return tune.fine_tune(Job(encoder, cache, config, out, **job))  # type: ignore[arg-type]


def bytes_of(folder: Path) -> dict[str, bytes]:
    kept = ("model.safetensors", "config.json", "settings.yaml", "trained_on.csv", "evaluation.json")
    return {name: (folder / name).read_bytes() for name in kept}


@pytest.mark.slow
def test_a_label_that_is_easily_seen_is_learned_and_twice_the_same(
    encoder: Path, cache: Cache, tmp_path: Path
) -> None:
    tuned = learn(encoder, cache, tmp_path / "first")
    assert tuned.figures["auroc"]["value"] > 0.95
    assert tuned.figures["n"] == len(tuned.parts.test)
    learn(encoder, cache, tmp_path / "second")
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")
    folder = tuned.folder
    assert json.loads((folder / "evaluation.json").read_text()) == json.loads(json.dumps(tuned.figures))
    assert configs.loads((folder / "settings.yaml").read_text()).classify.labels == ["spot"]
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [one["epoch"] for one in history] == [1, 2, 3, 4]
    assert sum(one["kept"] for one in history) == 1
    groups = set(pd.read_csv(folder / "trained_on.csv", dtype=str)["group"])
    tested = set(cache.index["group"].iloc[tuned.parts.test])
    assert groups | tested == set(cache.index["group"])
    assert not groups & tested
    card = (folder / "README.md").read_text()
    assert "not a medical device" in card
    assert f"{tuned.figures['auroc']['value']:.3f}" in card
    assert not any(name in card for name in [*groups, *cache.index["image"]])
    _, spec = finetuned.load(folder)
    assert spec.labels == ["spot"]


@pytest.mark.slow
def test_several_labels_with_unknowns(encoder: Path, cache: Cache, tmp_path: Path) -> None:
    tuned = learn(encoder, cache, tmp_path / "model", "finetune.epochs=2", labels=("rare", "spot"))
    assert {"auroc", "auroc:rare", "auroc:spot"} <= tuned.figures.keys()
    assert tuned.figures["auroc:rare"]["n"] < tuned.figures["auroc:spot"]["n"] == len(tuned.parts.test)


def test_few_labels_of_a_frozen_encoder(encoder: Path, cache: Cache, tmp_path: Path) -> None:
    few = ("classify.per_class=5", "finetune.frozen=true", "finetune.min_steps=6", "finetune.patience=1")
    config = finetunings.settings(encoder, *few, "privacy.min_cell=1000")
    notes: list[str] = []
    tuned = tune.fine_tune(Job(encoder, cache, config, tmp_path / "model"), tune.Listener(note=notes.append))
    assert notes == ["6 epochs instead of 4, for finetune.min_steps=6"]
    assert (len(tuned.parts.train), len(tuned.parts.val)) == (10, 0)
    assert len(tuned.history.epochs) == 6, "nothing stops it early"
    state = finetuned.load(tuned.folder)[0].encoder.state_dict()
    began = finetuned.start(encoder, finetunings.settings(encoder))[0].encoder.state_dict()
    assert all((state[name] == began[name]).all() for name in began)
    groups = pd.read_csv(tuned.folder / "trained_on.csv", dtype=str)
    assert set(groups["part"]) == {"train"}
    assert len(groups) == 10
    card = (tuned.folder / "README.md").read_text()
    assert "<1000" in card
    assert f"| {tuned.figures['n']} |" not in card


@pytest.mark.slow
def test_validation_patients_of_one_class_stop_nothing_and_it_is_said(encoder: Path, tmp_path: Path) -> None:
    place = np.repeat(np.linspace(0, 1, 40), 2).round(6)
    spot = (np.arange(80) // 2 % 2).astype(float)
    spot[(place >= 0.3) & (place < 0.6)] = 0
    cache = finetunings.spotted(tmp_path / "cache", patients=40, split=place, labels={"label:spot": spot})
    notes: list[str] = []
    config = finetunings.settings(encoder, "finetune.epochs=2")
    tuned = tune.fine_tune(Job(encoder, cache, config, tmp_path / "model"), tune.Listener(note=notes.append))
    assert notes == [
        "the validation patients have one class only: no early stopping, the last weights are kept"
    ]
    assert tuned.history.best == 2
    lines = (tmp_path / "model" / "history.jsonl").read_text()
    assert '"score": null' in lines


@pytest.mark.slow
def test_without_test_patients_there_are_no_figures(encoder: Path, cache: Cache, tmp_path: Path) -> None:
    tuned = learn(encoder, cache, tmp_path / "model", "finetune.epochs=1", "data.test_share=0")
    assert tuned.figures == {}
    assert "no patients were set aside" in (tuned.folder / "README.md").read_text()


# ---- the command


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["sscxr", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.slow
def test_the_command_says_how_it_goes_and_where_the_model_is(
    encoder: Path,
    cache: Cache,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "model"
    options = [
        "--encoder",
        encoder,
        "--data",
        cache.folder,
        "--label",
        "spot",
        "--out",
        out,
        "--source",
        "north",
    ]
    overrides = [*finetunings.QUICK, "finetune.img_size=48", "finetune.epochs=2"]
    code, said, heard = run(capsys, monkeypatch, "finetune", "classify", *options, *overrides)
    assert code == 0, heard
    assert said.splitlines()[-1] == str(out)
    assert "auroc" in said
    assert "resampled to 48 px" in heard
    assert "epoch 2/2: loss" in heard
    assert "validation AUROC" in heard
    for secret in [*cache.index["group"], *cache.index["image"]]:
        assert secret not in said + heard
    trained = set(pd.read_csv(out / "trained_on.csv", dtype=str)["group"])
    assert trained <= set(cache.index["group"][cache.index["source"] == "north"])
    code, _, heard = run(capsys, monkeypatch, "finetune", "classify", *options, *overrides)
    assert code == 1
    assert "--force" in heard


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--label": "spto"}, "has no label 'spto'; its labels: spot, rare, void, same"),
        ({"--label": "spot,spot"}, "label 'spot' is named twice"),
        ({"--label": ","}, "classify.labels is empty"),
        ({"--label": "void"}, "void is unknown of every image here"),
        ({"--label": "same"}, "label 'same': 81 of the training images have it and 0 do not"),
        ({"--source": "nowhere"}, "has no source 'nowhere'; its sources: north, south"),
        ({"--per-class": "500"}, "500 images per class are requested, but there are"),
        ({"--encoder": "{tmp}/nowhere"}, "no such folder"),
        ({"--data": "{tmp}"}, "not a finished cache"),
        ({"--out": "{tmp}"}, "a fine-tuned model; choose another folder"),
        ({"finetune.img_size": "50"}, "finetune.img_size=50 is not a multiple of encoder.patch_size=8"),
        ({"finetune.lrr": "1"}, "did you mean 'finetune.lr'"),
        ({"encoder.img_size": "64"}, "'encoder.img_size=64' has no effect: the encoder keeps its own sizes"),
        ({"data.mean": "0.4"}, "'data.mean=0.4' has no effect"),
        ({"classify.pool": "max"}, "classify.pool='max' is none of mean, cls"),
        ({"data.test_share": "0.5", "finetune.val_share": "0.5"}, "are too few"),
    ],
)
def test_bad_input_is_one_clear_line_before_anything_is_learned(
    encoder: Path,
    cache: Cache,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    message: str,
) -> None:
    index = pd.read_csv(cache.folder / "index.csv", dtype=str)
    index["label:void"], index["label:same"] = "", "1"
    for name in ("images.npy", "summary.json"):
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache" / name).write_bytes((cache.folder / name).read_bytes())
    index.to_csv(tmp_path / "cache" / "index.csv", index=False)
    open_cache(tmp_path / "cache")
    options = {"--encoder": str(encoder), "--data": str(tmp_path / "cache"), "--label": "spot"}
    options |= {"--out": str(tmp_path / "model")}
    options |= {name: value.format(tmp=tmp_path) for name, value in changes.items()}
    words = [part for name, value in options.items() if name.startswith("--") for part in (name, value)]
    overrides = [f"{name}={value}" for name, value in options.items() if not name.startswith("--")]
    code, said, heard = run(
        capsys, monkeypatch, "finetune", "classify", *words, *finetunings.QUICK, *overrides
    )
    assert (code, said) == (1, "")
    assert message in heard
    assert len(heard.splitlines()) == 1
    assert "epoch" not in heard
    assert not (tmp_path / "model").exists()
