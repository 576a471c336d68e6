"""Segmentation as a task: what the loss looks at, what the score measures, and that it learns."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from caches import make_cache

from sscxr import config as configs
from sscxr import seeds
from sscxr.config import Config
from sscxr.data.cache.cache import Cache, open_cache
from sscxr.finetuning import finetune, finetuned
from sscxr.finetuning.segment import Segmentation, segmentation_loss
from sscxr.models.unetr import UNETR

SIZE = 32
CPU = torch.device("cpu")
STILL = ["finetune.rotate=0", "finetune.shift=0", "finetune.scale=[1,1]", "finetune.drop_path=0"]


def settings(*overrides: str) -> Config:
    shape = ["encoder.name=vit_tiny_patch16_224", f"encoder.img_size={SIZE}", "encoder.patch_size=8"]
    shape += ["encoder.depth=4", "gmml.align=8", "gmml.blocks=[4]", "segment.feature_size=4"]
    return configs.load("default", ["run.stage=segment", "run.threads=1", *shape, *overrides])


def chests(count: int, size: int = SIZE) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Grey noise with two dark ellipses, and where they are."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    lungs = []
    for _ in range(count):
        middle, high = rng.uniform(0.4, 0.6), rng.uniform(0.25, 0.35)
        sides = [
            ((x - side) / 0.15) ** 2 + ((y - middle) / high) ** 2 < 1
            for side in rng.normal((0.28, 0.72), 0.02)
        ]
        lungs.append(sides[0] | sides[1])
    lung = np.stack(lungs)
    images = rng.normal(170, 12, lung.shape) - 90 * lung
    return images.clip(0, 255).astype(np.uint8), lung.astype(np.uint8) * np.uint8(255)


def cache_of(folder: Path, count: int, size: int = SIZE, **index: Any) -> Cache:
    images, masks = chests(count, size)
    make_cache(folder, images, {"has_mask": 1} | index)
    np.save(folder / "masks.npy", masks)
    return open_cache(folder)


def task_of(cache: Cache, *overrides: str) -> Segmentation:
    config = settings(*overrides)
    model, _ = finetuned.start(None, config)
    assert isinstance(model, UNETR)
    return Segmentation(model, cache, config, CPU)


# ---- the loss


def random_logits() -> torch.Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def some_masks() -> torch.Tensor:
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    masks[:, :, 2:6, 1:4] = 255
    masks[0, :, :, 6:] = 127
    return masks


def test_ignored_pixels_are_in_neither_part_of_the_loss() -> None:
    logits, masks = random_logits(), some_masks()
    ignored = masks == 127
    other = torch.where(ignored, 50 * torch.ones_like(logits), logits).requires_grad_()
    loss = segmentation_loss(other, masks)
    assert torch.equal(loss, segmentation_loss(logits, masks))
    loss.backward()  # type: ignore[no-untyped-call]
    assert other.grad is not None
    assert (other.grad[ignored] == 0).all()
    assert (other.grad[~ignored] != 0).all()


def test_the_loss_is_least_at_the_mask_itself_and_symmetric_in_the_images() -> None:
    masks = some_masks()
    right = (masks == 255).float() * 40 - 20
    assert segmentation_loss(right, masks) < 1e-4
    assert segmentation_loss(-right, masks) > 10
    logits = random_logits()
    assert segmentation_loss(logits, masks) == pytest.approx(
        float(segmentation_loss(logits.flip(0), masks.flip(0))), rel=1e-6
    )


def test_a_batch_that_is_all_ignored_has_no_gradient_but_a_finite_loss() -> None:
    logits = random_logits().requires_grad_()
    loss = segmentation_loss(logits, torch.full((2, 1, 8, 8), 127, dtype=torch.uint8))
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert (logits.grad == 0).all()


# ---- batches and the score


def test_masks_move_as_the_images_do(tmp_path: Path) -> None:
    task = task_of(
        cache_of(tmp_path, 4), "finetune.brightness=0", "finetune.contrast=0", "finetune.rotate=30"
    )
    inputs, masks = task.batch(np.arange(4), seeds.generator(CPU, 0, "views"))
    assert (inputs.shape, masks.shape, masks.dtype) == ((4, 1, SIZE, SIZE), (4, 1, SIZE, SIZE), torch.uint8)
    grey = inputs * 0.25 + 0.5
    lung, unmoved = masks == 255, torch.tensor(task.masks).unsqueeze(1) == 255
    beyond = grey < 0.1  # what comes from outside the image is black
    # At outlines a pixel may be half and half; anywhere else lungs are dark and the rest is bright.
    dark = (grey < 0.5) & ~beyond
    assert (dark == lung).float().mean() > 0.95 > 0.9 > (dark == unmoved).float().mean()
    assert not (lung & beyond).any()


def test_the_score_is_dice_at_the_caches_resolution_without_ignored_pixels(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 3, size=2 * SIZE)
    task = task_of(cache)

    class Darkness(torch.nn.Module):
        """Sees lung where it is dark."""

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return -inputs

    task.model = Darkness()
    score = task.score(np.arange(3))
    assert 0.93 < score < 1
    masks = np.array(cache.masks)
    masks[:, :, : SIZE // 4] = 127  # no lung there
    task.masks = masks
    assert task.score(np.arange(3)) == score


@pytest.mark.slow
def test_two_images_are_learnt_by_heart_and_twice_alike(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 2)
    still = [*STILL, "finetune.brightness=0", "finetune.contrast=0"]
    quick = ["finetune.epochs=1", "finetune.min_steps=60", "finetune.patience=0", "finetune.lr=5e-3"]
    states = []
    for _ in range(2):
        task = task_of(cache, *still, *quick)
        before = task.score(np.arange(2))
        parts = finetune.Split(np.arange(2), np.arange(0), np.arange(0))
        history = finetune.fine_tune(task, parts, task.config)
        assert len(history.epochs) == 60
        assert before < 0.8 < 0.9 < task.score(np.arange(2))
        states.append(task.model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_frozen_encoder_stays_as_it_is_and_the_decoder_learns(tmp_path: Path) -> None:
    task = task_of(cache_of(tmp_path, 4), "finetune.frozen=true", "finetune.epochs=1", "finetune.min_steps=1")
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    finetune.fine_tune(task, finetune.Split(np.arange(3), np.arange(3, 4), np.arange(0)), task.config)
    after = task.model.state_dict()
    changed = {
        name.partition(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"decoder"}
