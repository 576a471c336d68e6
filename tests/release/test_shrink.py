"""A release as float16: half the bytes, float32 parameters, and a card that states the difference."""

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from releases import a_run, encoder, key_files, write

from sscxr.errors import SscxrError
from sscxr.release import release, shrink, signing


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release that nobody changes; beside it `release.key` and `release.pub`."""
    folder = tmp_path_factory.mktemp("published")
    key = signing.read_private(key_files(folder)[0])
    return release.publish(a_run(folder / "run"), folder / "out", version="1.0", licence="CC-BY-4.0", key=key)


def test_half_the_bytes_load_as_float32_and_the_card_states_the_difference(
    published: Path, tmp_path: Path
) -> None:
    before = {file.name: file.read_bytes() for file in published.iterdir()}
    key = signing.read_private(published.parent / "release.key")
    out = tmp_path / "small"
    difference = shrink.shrink(published, out, key=key)
    assert {file.name: file.read_bytes() for file in published.iterdir()} == before

    release.verify(out, signing.read_public(published.parent / "release.pub"))
    sizes = [(place / release.WEIGHTS).stat().st_size for place in (out, published)]
    assert 0.49 < sizes[0] / sizes[1] < 0.51
    full, half = (release.load_encoder(place).state_dict() for place in (published, out))
    assert all(tensor.dtype == torch.float32 for tensor in half.values())
    assert all(torch.equal(half[name], full[name].half().float()) for name in full)
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).state_dict()
    assert all(torch.equal(theirs[name], half[name]) for name in half)

    assert 0 < difference.mean <= difference.largest < 0.01
    facts = release.facts(out)
    assert (facts["version"], facts["weights"], facts["licence"]) == ("1.0-fp16", "float16", "CC-BY-4.0")
    card = (out / release.CARD).read_text().replace("\\", "")
    assert card.count("## Release") == 1
    assert "Version 1.0-fp16. Licence of the weights: CC-BY-4.0;" in card
    assert f"those of version 1.0, in float32, {difference}" in card
    assert "## Probes" in card
    shrink.shrink(published, out, key=key)  # the same again


def test_a_difference_is_relative_to_the_features() -> None:
    """The last layer's scale and bias, 1 % larger, make each feature 1 % larger."""
    model, other = encoder().eval(), encoder().eval()
    with torch.no_grad():
        other.norm.weight *= 1.01
        other.norm.bias *= 1.01
    for one in (model, other):
        one.pretrained_cfg = {"mean": (0.5,), "std": (0.25,)}
    found = shrink.compare(other, model, images=3)
    assert found.mean == pytest.approx(0.01, rel=1e-3)
    assert found.largest == pytest.approx(0.01, rel=1e-3)
    assert shrink.compare(model, model, images=1) == shrink.Difference(0, 0, 1)


def test_what_is_not_shrunk(published: Path, tmp_path: Path) -> None:
    def refused(folder: Path, out: Path, says: str, **options: str) -> None:
        with pytest.raises(SscxrError, match=says) as error:
            shrink.shrink(folder, out, **options)
        assert "\n" not in str(error.value)

    out = tmp_path / "out"
    refused(tmp_path / "nothing", out, "is not a release")
    refused(write(tmp_path / "encoder"), out, "no SHA256SUMS")
    refused(published, out, "not a plain name", version="../1")
    assert not out.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refused(published, tmp_path / "mine", "holds something else")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    shrink.shrink(published, out)
    refused(out, tmp_path / "again", "float16 weights already")

    large = tmp_path / "large"
    shutil.copytree(published, large)
    weights = safetensors.torch.load_file(large / release.WEIGHTS)
    weights["norm.bias"][3] = 70_000
    safetensors.torch.save_file(weights, large / release.WEIGHTS)
    (large / signing.SUMS).write_bytes(signing.sums_of(large, release.FILES))
    refused(large, tmp_path / "again", r"norm\.bias has weights beyond 65504")
    assert not (tmp_path / "again").exists()
