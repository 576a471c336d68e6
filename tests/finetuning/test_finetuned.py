"""A fine-tuned model's folder: what is written comes back, and what is not right is refused in one line."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import finetunings
import pytest
import releases
import safetensors.torch
import torch

from sscxr.errors import SscxrError
from sscxr.finetuning import finetuned
from sscxr.finetuning.finetuned import FinetunedError, Spec
from sscxr.models.encoder import build, model_args
from sscxr.release import release, signing
from sscxr.release.release import ReleaseError

ARGS = model_args(**releases.SIZES)


def spec(**changes: object) -> Spec:
    facts = {
        **{"task": "classify", "architecture": releases.NAME, "model_args": dict(ARGS)},
        **{"mean": 0.5, "std": 0.25, "labels": ["a", "b c"], **changes},
    }
    return Spec(**facts)  # type: ignore[arg-type]


def model(seed: int = 0, **changes: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    return finetuned.build(spec(**changes)).eval()


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(3, 1, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return finetuned.save(tmp_path / "model", model(), spec(), extra={"README.md": "hello"})


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return releases.write(tmp_path / "encoder")


def test_what_is_saved_is_loaded(written: Path) -> None:
    state = torch.get_rng_state()
    loaded, what = finetuned.load(written)
    assert torch.equal(state, torch.get_rng_state()), "the global generator is as it was"
    assert what == spec()
    assert not loaded.training
    assert torch.equal(loaded(images()), model()(images()))
    assert (written / "README.md").read_text() == "hello"
    assert not list(written.parent.glob(".*")), "nothing is left beside it"


def test_the_same_model_gives_the_same_bytes(written: Path, tmp_path: Path) -> None:
    again = finetuned.save(tmp_path / "again", model(), spec())
    for name in ("model.safetensors", "config.json", "SHA256SUMS"):
        assert (again / name).read_bytes() == (written / name).read_bytes()


def test_weights_and_config_alone_are_the_model(written: Path) -> None:
    whole, spec = finetuned.load(written)
    for file in written.iterdir():
        if file.name not in (finetuned.WEIGHTS, finetuned.CONFIG):
            file.unlink()
    alone, same = finetuned.load(written)
    assert same == spec
    state = whole.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in alone.state_dict().items())


# ---- what it begins from


def test_it_begins_at_the_encoder_and_a_seeded_head(encoder: Path) -> None:
    config = finetunings.settings(encoder, labels=("a", "b"))
    begun, what = finetuned.start(encoder, config)
    trained = release.load_encoder(encoder).state_dict()
    state = begun.encoder.state_dict()
    assert state.keys() == trained.keys()
    assert all(torch.equal(state[name], trained[name]) for name in trained)
    assert what.labels == ["a", "b"]
    assert what.encoder_sha256 == release.facts(encoder)["sha256"]
    again, _ = finetuned.start(encoder, config)
    assert torch.equal(begun.head.weight, again.head.weight)
    config.run.seed = 1
    other, _ = finetuned.start(encoder, config)
    assert not torch.equal(begun.head.weight, other.head.weight)


def test_untrained_it_is_the_same_network_with_random_weights(encoder: Path) -> None:
    config = finetunings.settings(encoder)
    plain, what = finetuned.start(encoder, config, untrained=True)
    trained, other = finetuned.start(encoder, config)
    assert what.encoder_sha256 == ""
    assert dataclasses.replace(other, encoder_sha256="") == what
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in trained.state_dict().items()
    }
    assert torch.equal(plain.head.weight, trained.head.weight), (
        "what is compared is the encoder's start alone"
    )
    assert not torch.equal(
        plain.encoder.state_dict()["blocks.0.attn.qkv.weight"],
        trained.encoder.state_dict()["blocks.0.attn.qkv.weight"],
    )


def test_another_input_size_resamples_the_position_embedding_and_says_so(encoder: Path) -> None:
    config = finetunings.settings(encoder, "finetune.img_size=48")
    begun, what = finetuned.start(encoder, config)
    assert what.img_size == 48
    assert begun.encoder.pos_embed.shape[1] == 1 + 6 * 6
    assert torch.isfinite(begun(images(48))).all()
    (note,) = finetuned.notes_on_start(encoder, config)
    assert "32 px" in note
    assert "resampled to 48 px" in note
    assert finetuned.notes_on_start(encoder, finetunings.settings(encoder, "finetune.img_size=32")) == []


def test_three_channels_are_summed_to_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {**releases.SIZES, "in_chans": 3}
    coloured = build(releases.NAME, **sizes).eval()
    folder = releases.write(tmp_path / "encoder", coloured, model_args=model_args(**sizes))
    config = finetunings.settings(folder)
    begun, _ = finetuned.start(folder, config)
    grey = images()
    assert torch.allclose(
        begun.eval().encoder.forward_features(grey),
        coloured.forward_features(grey.expand(-1, 3, -1, -1)),
        atol=1e-4,
    )
    assert "three channels" in finetuned.notes_on_start(folder, config)[0]


def rewrite(encoder: Path, **args: object) -> None:
    file = encoder / "config.json"
    facts = json.loads(file.read_text())
    facts["model_args"] |= args
    file.write_text(json.dumps(facts))


def test_encoders_that_cannot_be_built_on_are_refused(encoder: Path, written: Path, tmp_path: Path) -> None:
    config = finetunings.settings(encoder)
    with pytest.raises(FinetunedError, match="is a fine-tuned model; give the encoder"):
        finetuned.encoder_settings(written)
    with pytest.raises(ReleaseError, match="there is no such folder"):
        finetuned.encoder_settings(tmp_path / "nowhere")
    with pytest.raises(FinetunedError, match=r"it has no config\.json; \S+/encoder is one"):
        finetuned.encoder_settings(tmp_path)
    pickled = tmp_path / "pickled"
    shutil.copytree(encoder, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(FinetunedError, match=r"pytorch_model\.bin is a pickle, which could run code"):
        finetuned.encoder_settings(pickled)
    (encoder / "model.safetensors").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(SscxrError, match="cannot load the encoder"):
        finetuned.start(encoder, config)
    rewrite(encoder, in_chans=2)
    with pytest.raises(FinetunedError, match="takes 2 channels"):
        finetuned.encoder_settings(encoder)
    rewrite(encoder, in_chans=1, embed_dim=24)
    with pytest.raises(ReleaseError, match="embed_dim=24, which no release has"):
        finetuned.encoder_settings(encoder)


# ---- what is not loaded, and what is not written over


def damage(written: Path, kind: str) -> None:
    weights, config = written / "model.safetensors", written / "config.json"
    data = weights.read_bytes()
    (written / "SHA256SUMS").unlink() if kind != "byte" else None
    if kind == "byte":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif kind == "cut":
        weights.write_bytes(data[: len(data) // 2])
    elif kind == "pickle":
        torch.save(model().state_dict(), weights)
    elif kind == "bin":
        weights.rename(written / "pytorch_model.bin")
    elif kind == "other labels":
        config.write_text(config.read_text().replace('"a",', '"a", "more",'))
    elif kind == "no json":
        config.write_text("{")
    elif kind == "unknown task":
        config.write_text(config.read_text().replace("classify", "guess"))
    elif kind == "unknown key":
        config.write_text(config.read_text().replace('"task"', '"x": 1, "task"'))
    elif kind == "sizes":
        config.write_text(config.read_text().replace('"depth": 2', '"depth": 3'))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("byte", "model.safetensors is not the file that SHA256SUMS lists"),
        ("cut", "whole safetensors file"),
        ("pickle", "whole safetensors file"),
        ("bin", "no model.safetensors; pytorch_model.bin is a pickle, which could run code, and is refused"),
        ("other labels", "do not belong together"),
        ("sizes", "do not belong together"),
        ("no json", "not readable"),
        ("unknown task", "does not describe a fine-tuned model"),
        ("unknown key", "does not describe a fine-tuned model"),
    ],
)
def test_a_damaged_model_is_one_clear_line(written: Path, kind: str, message: str) -> None:
    damage(written, kind)
    with pytest.raises(SscxrError) as caught:
        finetuned.load(written)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_model_that_is_not_finite_is_refused(written: Path) -> None:
    state = safetensors.torch.load_file(written / finetuned.WEIGHTS)
    state["head.bias"][0] = float("nan")
    safetensors.torch.save_file(state, written / finetuned.WEIGHTS)
    (written / signing.SUMS).unlink()
    with pytest.raises(FinetunedError, match=r"head\.bias holds NaN or Inf"):
        finetuned.load(written)


def test_what_is_no_model(tmp_path: Path, encoder: Path) -> None:
    with pytest.raises(FinetunedError, match=r"has no model\.safetensors and no config"):
        finetuned.load(tmp_path / "nowhere")
    with pytest.raises(FinetunedError, match="is an encoder, not a fine-tuned model"):
        finetuned.load(encoder)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("architecture", 5),
        ("model_args", {"img_size": 32, "patch_size": 0}),
        ("mean", "grey"),
        ("std", 0),
        ("std", float("nan")),
        ("labels", []),
        ("labels", "pneumonia"),
        ("labels", [1]),
    ],
)
def test_a_config_of_another_form_is_one_clear_line(written: Path, part: str, value: Any) -> None:
    facts = json.loads((written / finetuned.CONFIG).read_text())
    (written / finetuned.CONFIG).write_text(json.dumps(facts | {part: value}))
    with pytest.raises(FinetunedError, match="does not describe a fine-tuned model"):
        finetuned.load(written)


def test_only_a_fine_tuned_model_is_written_over_and_only_when_asked(
    written: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FinetunedError, match="--force"):
        finetuned.save(written, model(1), spec())
    finetuned.save(written, model(1), spec(), overwrite=True)
    assert not (written / "README.md").exists(), "nothing of the old one stays"
    assert torch.equal(finetuned.load(written)[0](images()), model(1)(images()))
    for folder in (encoder, tmp_path):
        before = sorted(folder.iterdir())
        with pytest.raises(FinetunedError, match="other than a fine-tuned model"):
            finetuned.save(folder, model(), spec(), overwrite=True)
        assert sorted(folder.iterdir()) == before
    (tmp_path / "empty").mkdir()
    finetuned.save(tmp_path / "empty", model(), spec())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    finetuned.save(".", model(), spec())
    assert finetuned.read_spec(tmp_path / "here") == spec()


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    broken = model()
    with torch.no_grad():
        broken.head.bias[0] = float("nan")
    with pytest.raises(FinetunedError, match=r"head\.bias holds NaN"):
        finetuned.save(tmp_path / "model", broken, spec())
    assert not list(tmp_path.iterdir())


def test_names_of_the_encoder_are_timms(written: Path) -> None:
    names = safetensors.torch.load_file(written / "model.safetensors").keys()
    encoder = build(releases.NAME, **releases.SIZES).state_dict().keys()
    assert {name.removeprefix("encoder.") for name in names if name.startswith("encoder.")} == set(encoder)
    assert {name for name in names if not name.startswith("encoder.")} == {"head.weight", "head.bias"}
