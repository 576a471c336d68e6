"""Words in a release that somebody made to mislead whoever looks at it."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from releases import NAME, write

from sscxr.finetuning import finetuned
from sscxr.release import config_file, release


@pytest.mark.parametrize(
    "text", ["1.0\nsignature     this key's", "1.0\x1b[2J\x1b[1;1Hsums right", "1\u202e0"]
)
def test_what_a_release_says_of_itself_is_one_printable_line(text: str) -> None:
    told = release.one_line(text)
    assert told.isprintable()
    assert told.startswith("1")


def test_facts_are_told_in_such_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Encoder:
        blocks, num_features, global_pool = (), 4, "avg"
        patch_embed = type("Patches", (), {"patch_size": (8, 8)})

        def parameters(self) -> list[object]:
            return []

    forged = "1.0\nsignature     this key's"
    config = {
        "architecture": "vit",
        "sscxr": {"version": forged, "licence": forged, "rounds": forged},
        "pretrained_cfg": {"input_size": [1, 8, forged], "mean": [0.5], "std": [0.25]},
    }
    safetensors.torch.save_file({}, tmp_path / release.WEIGHTS)
    monkeypatch.setattr(release, "load_encoder", lambda folder: Encoder())
    monkeypatch.setattr(config_file, "read", lambda folder: config)
    facts = release.facts(tmp_path)
    assert facts["version"] == facts["licence"] == "1.0 signature this key's"
    assert facts["rounds"] is None
    assert facts["signature"] == "none"
    assert not [value for value in facts.values() if "\n" in str(value)]


ODD_ARGS = [
    ("pretrained_strict", False),
    ("features_only", True),
    ("checkpoint_path", "/etc/passwd"),
    ("weight_init", "jax"),
    ("norm_layer", "os.system"),
    ("global_pool", "max"),
    ("img_size", 40_000),
    ("img_size", True),
    ("depth", 10**6),
    ("patch_size", 0),
    ("a\nsignature", 1),
]


@pytest.mark.parametrize(("name", "value"), ODD_ARGS)
def test_arguments_that_no_release_has_are_refused(tmp_path: Path, name: str, value: object) -> None:
    folder = write(tmp_path / "encoder")
    config = json.loads((folder / release.CONFIG).read_text())
    config["model_args"][name] = value
    (folder / release.CONFIG).write_text(json.dumps(config))
    with pytest.raises(release.ReleaseError, match="which no release has") as error:
        release.load_encoder(folder)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["hf-hub:x/y", "../../x", "resnet18"])
def test_an_architecture_that_is_not_a_plain_vit_is_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "encoder")
    config = json.loads((folder / release.CONFIG).read_text()) | {"architecture": name}
    (folder / release.CONFIG).write_text(json.dumps(config))
    with pytest.raises(release.ReleaseError):
        release.load_encoder(folder)


def test_a_release_without_one_of_its_blocks_is_refused_and_takes_no_memory(tmp_path: Path) -> None:
    folder = write(tmp_path / "encoder")
    config = json.loads((folder / release.CONFIG).read_text())
    config["model_args"] |= {"depth": 200, "img_size": 4096}
    config["architecture"] = "vit_giant_patch14_224"
    (folder / release.CONFIG).write_text(json.dumps(config))
    with pytest.raises(release.ReleaseError, match="timm cannot load"):
        release.load_encoder(folder)
    config["model_args"] |= {"depth": 2, "img_size": 32}
    config["architecture"] = NAME
    (folder / release.CONFIG).write_text(json.dumps(config))
    weights = safetensors.torch.load_file(folder / release.WEIGHTS)
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("blocks.1.")}
    safetensors.torch.save_file(kept, folder / release.WEIGHTS)
    with pytest.raises(release.ReleaseError, match=r"blocks\.1\.\S+ is absent in model\.safetensors"):
        release.load_encoder(folder)


def test_what_a_config_has_beside_what_is_known_is_not_used(tmp_path: Path) -> None:
    folder = write(tmp_path / "encoder")
    expected = release.load_encoder(folder).state_dict()
    config = json.loads((folder / release.CONFIG).read_text()) | {
        "pretrained_strict": False,
        "num_classes": 7,
    }
    config["pretrained_cfg"] |= {"url": "http://127.0.0.1:9/x", "file": "/etc/passwd", "custom_load": True}
    (folder / release.CONFIG).write_text(json.dumps(config))
    encoder = release.load_encoder(folder)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.state_dict().items())
    assert sorted(encoder.pretrained_cfg) == ["input_size", "mean", "std"]


def test_a_config_of_endless_depth_is_no_fine_tuned_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert not finetuned.is_model(tmp_path)
