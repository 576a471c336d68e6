"""The gradient of a private step of each stage, without noise, is the sum over patients of what autograd gives."""

from functools import partial
from pathlib import Path

import federation as fed
import numpy as np
import pytest
import torch
from caches import make_cache
from marks import slow

from sscxr import stages
from sscxr.config import Config
from sscxr.data.cache.cache import open_cache
from sscxr.stages.base import Training
from sscxr.training.batches import stretch_of_round
from sscxr.training.private import Privacy
from sscxr.training.secret import Secret

CLIP = 0.01
EXACT = ("privacy.noise=1", "pretrain.batch_size=8", "finetune.batch_size=8")
GROUPS = np.array(["a", "b", "b", "c", "d", "d", "d", "e"])
STAGES = {
    "gmml": ("gmml.kinds=[noise,zeros]", "pretrain.views=2", "pretrain.amp=fp32"),
    "mae": ("pretrain.objective=mae", "mae.decoder_width=32", "pretrain.amp=fp32"),
    "classify": ("run.stage=classify", "classify.labels=[a]", "classify.balance=false", "finetune.amp=fp32"),
    "frozen": (
        *("run.stage=classify", "classify.labels=[a]", "classify.balance=false", "finetune.amp=fp32"),
        "finetune.frozen=true",
    ),
    "segment": ("run.stage=segment", "encoder.depth=4", "segment.feature_size=4", "finetune.amp=fp32"),
}


def training(folder: Path, config: Config) -> Training:
    rows = np.arange(8)
    masks = np.zeros((8, 32, 32), np.uint8)
    masks[:, 8:24, 8:24] = 255
    index = {"group": GROUPS, "label:a": [0, 1, 1, 0, 1, 0, np.nan, 1], "has_mask": 1}
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32), dtype=np.uint8)
    make_cache(folder, pixels, index)
    np.save(folder / "masks.npy", masks)
    torch.manual_seed(0)
    return stages.of(config).training(torch.device("cpu"), open_cache(folder), rows)


@pytest.mark.parametrize("stage", [slow(stage) if stage == "segment" else stage for stage in STAGES])
def test_it_is_the_sum_over_patients(tmp_path: Path, stage: str) -> None:
    config = fed.settings(*EXACT, *STAGES[stage], "encoder.drop_path=0", "finetune.drop_path=0")
    here = training(tmp_path, config)
    rows, model = np.arange(8), here._model
    model.train()
    views = torch.Generator().manual_seed(3)
    stretch = stretch_of_round(range(1), 0, 1)
    [(batch, drawn)] = here.batches(iter([rows]), rows, "anna", range(1), stretch, views)
    inputs = here.draw_inputs(batch, torch.Generator().manual_seed(5))
    owners = np.tile(GROUPS, len(inputs[0]) // 8)
    learning = [one for one in model.parameters() if one.requires_grad]
    wanted = [torch.zeros_like(one) for one in learning]
    norms = []
    for patient in sorted(set(GROUPS)):
        model.zero_grad()
        mine = np.flatnonzero(owners == patient)
        for place in mine:
            (here.loss_of(*(one[place : place + 1] for one in inputs)) / len(mine)).backward()
        own = [one.grad for one in learning]
        norms.append(float(torch.cat([one.flatten() for one in own]).norm()))
        for sum_, one in zip(wanted, own, strict=True):
            sum_ += one * min(1.0, CLIP / norms[-1])
    assert max(norms) > CLIP, "or the test shows nothing of clipping"
    gradients = here._private(Privacy(0.0, CLIP, 8, 4), 8, torch.Generator().manual_seed(5))
    gradients(batch, drawn)
    for sum_, one in zip(wanted, learning, strict=True):
        torch.testing.assert_close(one.grad, sum_ / 8, rtol=1e-3, atol=1e-7)


def test_nothing_that_a_round_draws_follows_from_the_runs_seed(tmp_path: Path) -> None:
    """From a known seed, a patient's crop would follow from who else was drawn, and so would their gradient."""
    numbers, updates = range(1000), []
    for run, keys in ((1, 0), (2, 0), (2, 500)):
        config = fed.settings(
            *EXACT, *STAGES["gmml"], f"run.seed={run}", "encoder.drop_path=0.5", "encoder.depth=2"
        )
        here = training(tmp_path, config)
        start = stages.of(fed.settings("encoder.depth=2")).start()
        here.load_shared(start)
        here.objective.head.load_state_dict(training(tmp_path, fed.settings()).objective.head.state_dict())
        keyed = Secret(partial(next, iter([number.to_bytes(32, "big") for number in numbers[keys:]])))
        given = Privacy(0.1, CLIP, 16, 4, keyed)
        here.train_round(np.arange(8), site="anna", round_number=0, budget=600, privacy=given)
        updates.append(torch.cat([one.flatten() for one in here.update(start).values()]))
    assert torch.equal(updates[0], updates[1])
    assert not torch.equal(updates[0], updates[2])


@pytest.mark.parametrize("stage", ["gmml", "classify"])
def test_a_round_trains_with_random_depth_and_with_steps_without_any_patient(
    tmp_path: Path, stage: str
) -> None:
    deep = ("encoder.drop_path=0.5", "finetune.drop_path=0.5", "encoder.depth=2")
    config = fed.settings(*EXACT, *STAGES[stage], *deep)
    here = training(tmp_path, config)
    before = {name: tensor.clone() for name, tensor in here.parts.shared().items()}
    many = Privacy(1.0, CLIP, 80, 4)  # a tenth of the patients a step: of five there is often none
    done = here.train_round(np.arange(8), site="anna", round_number=0, budget=600, privacy=many)
    assert done.steps == 10
    assert done.images < 80
    assert all(tensor.isfinite().all() for tensor in here.parts.shared().values())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in here.parts.shared().items())
