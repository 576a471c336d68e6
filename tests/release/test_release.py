"""A released encoder: timm loads it whole, the same bytes every time, and a card that tells what it should."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from releases import NAME, SIZES, a_card, a_run, encoder, key_files, write

import sscxr
from sscxr.errors import SscxrError
from sscxr.finetuning import finetuned
from sscxr.models.encoder import model_args
from sscxr.release import card, release, signing
from sscxr.release.card import SiteData


def test_timm_loads_every_key_and_gives_the_same_features(tmp_path: Path) -> None:
    model = encoder().eval()
    folder = write(tmp_path / "encoder", model)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(loaded.forward_features(images), model.forward_features(images))
        # Called as it is, it gives the feature that the probes use.
        assert torch.equal(loaded(images), model.forward_features(images)[:, 1:].mean(dim=1))
    assert len(loaded.blocks) == 2
    assert loaded.patch_embed.proj.weight.shape == (192, 1, 8, 8)
    assert loaded.pretrained_cfg["mean"] == [0.5]
    assert tuple(loaded.pretrained_cfg["input_size"]) == (1, 32, 32)
    assert release.input_norm(folder) == (0.5, 0.25)


def test_our_loader_is_timms_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "encoder")
    before = torch.get_rng_state()
    loaded = release.load_encoder(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    for name, tensor in encoder().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize("wanted", [{"num_classes": 3}, {"in_chans": 3}, {"img_size": 48}])
def test_downstream_changes_keep_the_blocks(tmp_path: Path, wanted: dict[str, int]) -> None:
    folder = write(tmp_path / "encoder")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True, **wanted)
    size, channels = wanted.get("img_size", 32), wanted.get("in_chans", 1)
    assert loaded(torch.zeros(1, channels, size, size)).shape == (1, wanted.get("num_classes", 192))
    expected = encoder().state_dict()["blocks.1.mlp.fc1.weight"]
    assert torch.equal(loaded.state_dict()["blocks.1.mlp.fc1.weight"], expected)


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    write(tmp_path / "two")  # over itself
    for name in (release.WEIGHTS, release.CONFIG, release.CARD):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    with safetensors.safe_open(one / release.WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float32"}  # noqa: SIM118


def test_half_precision_is_released_as_float32(tmp_path: Path) -> None:
    folder = write(tmp_path / "encoder", encoder().half())
    assert release.load_encoder(folder).norm.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"model_args": model_args(**(SIZES | {"depth": 1}))}, "cannot load"),
        ({"model_args": model_args(**(SIZES | {"img_size": 48}))}, "cannot load"),
        ({"architecture": "vit_small_patch16_224"}, "cannot load"),
    ],
)
def test_what_timm_would_not_load_is_not_released(tmp_path: Path, broken: dict[str, Any], says: str) -> None:
    write(tmp_path / "encoder")
    before = (tmp_path / "encoder" / release.WEIGHTS).read_bytes()
    with pytest.raises(release.ReleaseError, match=says):
        write(tmp_path / "encoder", encoder(1), **broken)
    assert (tmp_path / "encoder" / release.WEIGHTS).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_non_finite_weights_are_not_released(tmp_path: Path) -> None:
    model = encoder()
    with torch.no_grad():
        model.norm.weight[3] = torch.nan
    with pytest.raises(release.ReleaseError, match=r"norm\.weight holds NaN"):
        write(tmp_path / "encoder", model)


@pytest.mark.parametrize(
    ("spoil", "says"), [(release.CONFIG, "no config.json"), (release.WEIGHTS, "no model")]
)
def test_a_folder_that_is_no_release(tmp_path: Path, spoil: str, says: str) -> None:
    folder = write(tmp_path / "encoder")
    (folder / spoil).unlink()
    with pytest.raises(release.ReleaseError, match=says):
        release.load_encoder(folder)


def test_a_run_in_place_of_its_encoder_names_the_encoder(tmp_path: Path) -> None:
    write(tmp_path / "encoder")
    with pytest.raises(release.ReleaseError, match=r"no config\.json; \S+/encoder is one"):
        release.load_encoder(tmp_path)


def test_what_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for look in (release.load_encoder, finetuned.encoder_settings):
        with pytest.raises(release.ReleaseError, match=r"no encoder .*absent: there is no such folder"):
            look(tmp_path / "absent")
        with pytest.raises(release.ReleaseError, match=r"no encoder .*file: it is a file"):
            look(tmp_path / "file")


def test_a_card_that_is_not_a_text(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    (run / "encoder" / release.CARD).write_bytes(b"\xff\xfe")
    with pytest.raises(release.ReleaseError, match=r"README\.md is not a text in UTF-8"):
        release.publish(run, tmp_path / "out")


def test_a_truncated_release_is_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "encoder")
    weights = folder / release.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(release.ReleaseError, match="cannot load") as error:
        release.load_encoder(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("architecture", 5),
        ("sscxr", "1.0"),
        ("pretrained_cfg", "none"),
        ("mean", []),
        ("mean", ["grey"]),
        ("mean", [float("nan")]),
        ("std", [0]),
        ("input_size", None),
    ],
)
def test_a_config_of_another_form_is_one_line(tmp_path: Path, part: str, value: Any) -> None:
    folder = write(tmp_path / "encoder")
    config = json.loads((folder / release.CONFIG).read_text())
    (config["pretrained_cfg"] if part in ("mean", "std", "input_size") else config)[part] = value
    (folder / release.CONFIG).write_text(json.dumps(config))
    with pytest.raises(release.ReleaseError, match="is not that of a released encoder"):
        release.facts(folder)


def test_a_config_that_no_parser_ends_is_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "encoder")
    (folder / release.CONFIG).write_text("[" * 100_000)
    with pytest.raises(release.ReleaseError, match="is not that of a released encoder"):
        release.load_encoder(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("evil", torch.zeros(2), r"evil is \[2\] in model\.safetensors and absent"),
        ("norm.weight", None, r"norm\.weight is absent in model\.safetensors"),
        ("norm.weight", torch.zeros(5), r"norm\.weight is \[5\] in"),
        ("norm.weight", torch.full((192,), torch.nan), "norm.weight holds NaN or Inf"),
    ],
)
def test_weights_that_are_not_the_encoders_are_refused(
    tmp_path: Path, name: str, tensor: torch.Tensor | None, says: str
) -> None:
    folder = write(tmp_path / "encoder")
    state = safetensors.torch.load_file(folder / release.WEIGHTS)
    state = {key: value for key, value in state.items() if key != name}
    safetensors.torch.save_file(
        state | ({} if tensor is None else {name: tensor}),
        folder / release.WEIGHTS,
        metadata={"format": "pt"},
    )
    with pytest.raises(release.ReleaseError, match=says) as error:
        release.load_encoder(folder)
    assert "\n" not in str(error.value)


def test_card_tells_data_licences_recipe_and_probes(tmp_path: Path) -> None:
    text = (write(tmp_path / "encoder") / release.CARD).read_text()
    assert "| north | 1,234 | <10 | CC BY 4.0 |" in text
    assert r"| idc | 160 | 120 | CC BY 4.0, CC BY\-NC\-SA 4.0 **(NON-COMMERCIAL)** |" in text
    assert "| silent | not reported | not reported | not stated |" in text
    assert "1 of 3 sites hold images under a NON-COMMERCIAL licence" in text
    assert "0.912 (0.874 to 0.945) | 0.801 (0.742 to 0.853) | +0.111 (+0.062 to +0.160) | <10 |" in text
    assert "12 federated rounds" in text
    assert "  name: demo" in text
    assert "not a medical device" in text
    assert "0.1.0" in text


@pytest.mark.slow
def test_code_in_the_card_runs_without_this_project(tmp_path: Path) -> None:
    """As it does where timm, torch and safetensors alone are installed."""
    folder = write(tmp_path / "encoder")
    code = re.search(r"```python\n(.*?)```", (folder / release.CARD).read_text(), re.DOTALL)
    assert code
    ours = str(Path(sscxr.__file__).parent / "_torchvision.py")
    # timm imports torchvision, whose wheel wants help beside a torch without CUDA: that is not the card's concern.
    helped = f"import runpy; runpy.run_path({ours!r})['make_importable'](); "
    blocked = "import sys; sys.modules.update(dict.fromkeys(('sscxr', 'client', 'server', 'sim')))\n"
    snippet = code[1].replace("PATH_OF_THIS_FOLDER", str(folder)) + "\nassert features.shape == (1, 192)\n"
    done = subprocess.run([sys.executable, "-c", helped + blocked + snippet], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_code_in_the_card_runs(tmp_path: Path) -> None:
    folder = write(tmp_path / "encoder")
    code = (folder / release.CARD).read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("PATH_OF_THIS_FOLDER", str(folder)), names)
    assert names["features"].shape == (1, 192)


@pytest.mark.parametrize(
    ("licence", "restricted"),
    [
        ("CC BY-NC-SA 4.0", True),
        ("cc-by-nc-4.0", True),
        ("CC_BY_NC", True),
        ("NonCommercial use only", True),
        ("for non-commercial research", True),
        ("CC BY 4.0", False),
        ("NIH terms: acknowledge the National Clinical Center (once)", False),
        ("", False),
    ],
)
def test_non_commercial_licences_are_known(licence: str, restricted: bool) -> None:
    assert card.non_commercial(licence) is restricted


def test_hostile_names_stay_text() -> None:
    site = SiteData("a|b\n# <script>x</script> [link](http://x)", 100, 50, ["`CC`|x"])
    config: dict[str, Any] = {"architecture": NAME, "num_features": 192, "global_pool": "avg"}
    config["pretrained_cfg"] = {"input_size": [1, 32, 32], "mean": [0.5], "std": [0.25]}
    text = card.render(a_card(data=[site], settings="x: '```'\n# not a heading"), config)
    assert "<script>" not in text
    row = next(line for line in text.splitlines() if "script" in line)
    assert row.replace("\\|", "").count("|") == 5
    assert "](http" not in row
    assert "````yaml" in text


def test_config_is_timms_form(tmp_path: Path) -> None:
    config = json.loads((write(tmp_path / "encoder") / release.CONFIG).read_text())
    assert config["architecture"] == NAME
    assert config["num_classes"] == 0
    assert config["num_features"] == 192
    assert config["model_args"]["img_size"] == 32
    assert config["pretrained_cfg"]["crop_pct"] == 1.0


def test_a_release_is_versioned_summed_and_signed(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    private, public = key_files(tmp_path)
    key = signing.read_private(private)
    folder = release.publish(run, tmp_path / "out", version="1.0", licence="CC BY 4.0", key=key)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*release.FILES, signing.SUMS, signing.SIGNATURE]
    )
    release.verify(folder, signing.read_public(public))
    assert (folder / release.WEIGHTS).read_bytes() == (run / "encoder" / release.WEIGHTS).read_bytes()
    assert (folder / release.WEIGHTS).stat().st_mode & 0o044 == 0o044  # a web server is another user
    text = (folder / release.CARD).read_text()
    assert "Version 1.0. Licence of the weights: CC BY 4.0;" in text
    assert text.index("## Probes") < text.index("## Release") < text.index("## Limits")
    facts = release.facts(folder)
    assert (facts["version"], facts["rounds"], facts["licence"]) == ("1.0", 12, "CC BY 4.0")
    assert (facts["blocks"], facts["patch_size"], facts["input"]) == (2, 8, "1x32x32")
    assert (facts["sums"], facts["signature"]) == ("right", "there")
    timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_a_release_made_again_is_the_same_and_never_another(tmp_path: Path) -> None:
    run, out = a_run(tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    release.publish(run, out)
    sums = (out / signing.SUMS).read_bytes()
    release.publish(run, out)
    assert (out / signing.SUMS).read_bytes() == sums
    release.publish(run, out, key=signing.read_private(key_files(tmp_path)[0]))
    assert (out / signing.SUMS).read_bytes() == sums
    with pytest.raises(release.ReleaseError, match="signed; give --key"):
        release.publish(run, out)
    with pytest.raises(release.ReleaseError, match="never changed"):
        release.publish(run, out, version="2")
    with pytest.raises(release.ReleaseError, match="never changed"):
        release.publish(a_run(tmp_path / "other", seed=1), out)
    with pytest.raises(release.ReleaseError, match="something else"):
        release.publish(run, tmp_path / "run")
    with pytest.raises(release.ReleaseError, match="plain name"):
        release.publish(run, tmp_path / "new", version="../1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other",
        "out",
        "release.key",
        "release.pub",
        "run",
    ]


def test_only_a_finished_run_is_released(tmp_path: Path) -> None:
    with pytest.raises(release.ReleaseError, match="has no checkpoints"):
        release.publish(tmp_path, tmp_path / "out")
    run = a_run(tmp_path / "run")
    (run / "sites").mkdir()
    with pytest.raises(release.ReleaseError, match="encoder is not measured"):
        release.publish(run, tmp_path / "out")
    (run / "probes.json").write_text("[]")
    release.publish(run, tmp_path / "out")
    write(run / "encoder", encoder(3))
    with pytest.raises(release.ReleaseError, match="not the encoder of"):
        release.publish(run, tmp_path / "out")
    (run / "encoder" / release.CONFIG).unlink()
    with pytest.raises(release.ReleaseError, match="not finished"):
        release.publish(run, tmp_path / "out")


@pytest.mark.parametrize("name", ["checkpoints/round-00012/encoder.safetensors", "encoder/config.json"])
def test_a_damaged_run_is_one_line(tmp_path: Path, name: str) -> None:
    run = a_run(tmp_path / "run")
    (run / name).write_bytes(b"")
    with pytest.raises(release.ReleaseError, match=r"are damaged|is not that of a released encoder"):
        release.publish(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_release_into_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, here = a_run(tmp_path / "run"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert release.facts(release.publish(run, "."))["folder"] == str(here)
    release.verify(here)


@pytest.mark.parametrize("name", release.FILES)
def test_one_wrong_byte_is_refused(tmp_path: Path, name: str) -> None:
    folder = release.publish(a_run(tmp_path / "run"), tmp_path / "out")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    for look in (release.verify, release.load_encoder, release.facts, sscxr.load_encoder):
        with pytest.raises(SscxrError, match=f"{name} is not the file"):
            look(folder)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    folder = release.publish(a_run(tmp_path / "run"), tmp_path / "out")
    torch.save(encoder().state_dict(), folder / release.WEIGHTS)
    (folder / signing.SUMS).write_bytes(signing.sums_of(folder, release.FILES))
    with pytest.raises(release.ReleaseError, match="safetensors file"):
        sscxr.load_encoder(folder)


def test_a_card_of_others_is_not_released() -> None:
    with pytest.raises(SscxrError, match="Limits"):
        card.released("# a card", version="1", licence="x")
