"""`sscxr finetune segment`: from an encoder and masks to a model's folder, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caches import make_cache
from releases import write
from typer.testing import CliRunner

from sscxr.commands.cli import app
from sscxr.data.cache.cache import Cache, CacheError, open_cache
from sscxr.finetuning import finetuned, judge, tune
from sscxr.finetuning.finetune import FinetuneError
from sscxr.models.encoder import EncoderError, build, model_args
from sscxr.models.unetr import UNETR

SIZE = 32
QUICK = ["finetune.epochs=1", "finetune.min_steps=1", "finetune.batch_size=8", "segment.feature_size=4"]
QUICK += ["run.threads=1", "run.device=cpu", "probe.resamples=50", "data.test_share=0.3"]


def encoder(folder: Path, **sizes: Any) -> Path:
    args = model_args(**({"img_size": SIZE, "patch_size": 8, "in_chans": 1, "depth": 4} | sizes))
    torch.manual_seed(5)
    return write(folder, build("vit_tiny_patch16_224", **args), model_args=args)


def outlined(folder: Path, count: int = 24, masks: Any = None) -> Cache:
    """Images whose bright box is the lung; a fifth has no mask."""
    images = np.random.default_rng(0).integers(0, 90, (count, SIZE, SIZE), dtype=np.uint8)
    images[:, 8:24, 10:22] += 120
    index = {
        "has_mask": (np.arange(count) % 5 > 0).astype(int),
        "split": ((np.arange(count) * 0.618034) % 1).round(6),
        "source": np.where(np.arange(count) % 2, "north", "south"),
        "spacing_mm": np.where(np.arange(count) % 2, 2.0, np.nan),
    }
    make_cache(folder, images, index)
    lung = np.where(images > 100, 255, 0).astype(np.uint8)
    np.save(folder / "masks.npy", lung if masks is None else masks)
    return open_cache(folder)


def job(tmp_path: Path, cache: Cache, release: Path, *overrides: str, **more: Any) -> tune.Job:
    settings = tune.settings(release, "segment", "default", [*QUICK, *overrides])
    return tune.Job(release, cache, settings, tmp_path / "model", **more)


def test_the_command_trains_judges_and_writes(tmp_path: Path) -> None:
    cache, release = outlined(tmp_path / "cache"), encoder(tmp_path / "encoder")
    out = tmp_path / "model"
    asked = ["finetune", "segment", "--encoder", release, "--data", cache.folder, "--out", out, *QUICK]
    done = CliRunner().invoke(app, [str(word) for word in asked], catch_exceptions=False)
    assert done.exit_code == 0
    for word in ("dice", "hd95_px", "hd95_mm", "north: dice", "south: hd95_px", str(out)):
        assert word in done.stdout
    assert "south: hd95_mm" not in done.stdout  # its spacing is unknown
    model, spec = finetuned.load(out)
    assert isinstance(model, UNETR)
    assert (spec.task, spec.labels, spec.feature_size) == ("segment", ["lung"], 4)
    found = json.loads((out / "evaluation.json").read_text())
    has = (cache.index["has_mask"] == 1).to_numpy() & cache.held_out(0.3)
    assert found["dice"]["n"] == found["n"] == has.sum()
    assert found["by"]["source"]["north"]["hd95_mm"]["n"] == found["by"]["source"]["north"]["n"]
    judged = judge.evaluate(out, cache.folder, held_out=True)
    assert judged.figures["dice"] == found["dice"]
    assert "| dice |" in (out / "README.md").read_text()


def test_a_released_encoder_is_the_start_and_stays_when_frozen(tmp_path: Path) -> None:
    cache, release = outlined(tmp_path / "cache"), encoder(tmp_path / "encoder", img_size=64, patch_size=16)
    tuned = tune.fine_tune(job(tmp_path, cache, release, "finetune.frozen=true", sources=["north"]))
    assert set(cache.index["source"].iloc[tuned.parts.train]) == {"north"}
    model, spec = finetuned.load(tuned.folder)
    from sscxr.release import release as releases

    state = releases.load_encoder(release).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.encoder.state_dict().items())  # type: ignore[union-attr]
    assert spec.encoder_sha256


@pytest.mark.slow
def test_another_input_size_is_said(tmp_path: Path) -> None:
    cache, release = outlined(tmp_path / "cache"), encoder(tmp_path / "encoder")
    notes: list[str] = []
    asked = job(tmp_path, cache, release, "finetune.img_size=48")
    tuned = tune.fine_tune(asked, tune.Listener(note=notes.append))
    assert tuned.spec.img_size == 48
    assert any("resampled to 48 px" in note for note in notes)


def test_what_cannot_be_done_is_one_line(tmp_path: Path) -> None:
    release = encoder(tmp_path / "encoder")
    small = outlined(tmp_path / "small", masks=np.zeros((24, 16, 16), dtype=np.uint8))
    with pytest.raises(CacheError, match=r"masks of \(16, 16\) px for images of \(32, 32\) px"):
        tune.fine_tune(job(tmp_path, small, release))
    none = outlined(tmp_path / "none")
    (none.folder / "masks.npy").unlink()
    with pytest.raises(CacheError, match="has no masks"):
        tune.fine_tune(job(tmp_path, open_cache(none.folder), release))
    with pytest.raises(FinetuneError, match="too few"):
        tune.fine_tune(job(tmp_path, outlined(tmp_path / "few", count=3), release))
    cache = outlined(tmp_path / "cache")
    with pytest.raises(FinetuneError, match="no source 'west'"):
        tune.fine_tune(job(tmp_path, cache, release, sources=["west"]))
    with pytest.raises((finetuned.FinetunedError, EncoderError), match=r"power of two.*12"):
        tune.fine_tune(job(tmp_path, cache, encoder(tmp_path / "odd", img_size=48, patch_size=12)))
    with pytest.raises((finetuned.FinetunedError, EncoderError), match="four blocks"):
        tune.fine_tune(job(tmp_path, cache, encoder(tmp_path / "flat", depth=2)))
    assert not (tmp_path / "model").exists()
