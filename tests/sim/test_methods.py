"""Every method beside GMML: the same bytes after an interruption, also under Ray; private parts at the site."""

import json
from pathlib import Path

import pytest
import safetensors.torch
from simulations import losses, weights, whole_and_interrupted

from sscxr import load_encoder
from sscxr.runs import read_words
from sscxr.training.parts import apart

pytestmark = pytest.mark.slow
# What stays in a site's state beside the head, its moments and the codec's residual.
PRIVATE = {"mae": set(), "dino": {"private.centre", "private.teacher"}}
POOLED = {"mae": "avg", "dino": "token"}
ENGINES = {"mae": "inline", "dino": "ray"}  # Ray takes long to start; DINO has the most to keep


@pytest.mark.parametrize("method", PRIVATE)
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(
    tmp_path: Path, cache: Path, method: str
) -> None:
    chosen = [f"pretrain.objective={method}", "pretrain.accumulate=2", "federation.evaluate_every=1"]
    whole, stopped = whole_and_interrupted(tmp_path, cache, ENGINES[method], *chosen)
    assert weights(stopped) == weights(whole)
    assert losses(stopped) == losses(whole)
    states = [sorted(out.glob("sites/*/state/*/*.safetensors")) for out in (whole, stopped)]
    assert states[0]
    for one, other in zip(*states, strict=True):
        assert one.read_bytes() == other.read_bytes()
        kept = {".".join(name.split(".")[:2]) for name in safetensors.torch.load_file(one)}
        assert {name for name in kept if name.startswith("private.")} == PRIVATE[method]

    shared = safetensors.torch.load_file(whole / "checkpoints" / "round-00003" / "encoder.safetensors")
    released = safetensors.torch.load_file(whole / "encoder" / "model.safetensors")
    assert apart(shared)[0].keys() == released.keys(), "neither a head nor a teacher"
    assert json.loads((whole / "encoder" / "config.json").read_text())["global_pool"] == POOLED[method]
    assert load_encoder(whole / "encoder").global_pool == POOLED[method]
    words, page = read_words(whole), (whole / "report.html").read_text()
    assert words.made in (whole / "encoder" / "README.md").read_text()
    assert words.axis in page
    assert ("as the encoder gets them" in page) is (method == "mae")
