"""Inference: the order of the rows, batches that change nothing, the model left as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sscxr.models import inference
from sscxr.models.inference import Input

INPUT = Input(8, 0.5, 0.25, batch_size=2)


class Corners(nn.Module):
    """Logits: the first and the last pixel; tokens: nonsense, then the rows of pixels."""

    num_prefix_tokens = 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return torch.stack([images[:, 0, 0, 0], images[:, 0, -1, -1]], dim=1)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.full_like(images[:, 0, :1], 1e6), images[:, 0]], dim=1)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_probabilities_of_the_rows_asked_for(images: np.ndarray, batch_size: int) -> None:
    rows = np.array([5, 0, 0, 6])
    found = inference.probabilities(Corners(), images, rows, wants=replace(INPUT, batch_size=batch_size))
    logits = (images[rows][:, [0, -1], [0, -1]] / 255 - 0.5) / 0.25
    assert found == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)
    assert found.dtype == np.float64


def test_features_are_the_mean_of_the_patch_tokens(images: np.ndarray) -> None:
    found = inference.features(Corners(), images, wants=INPUT)
    assert found == pytest.approx((images.mean(axis=1) / 255 - 0.5) / 0.25, abs=1e-5)
    assert inference.features(Corners(), images, np.arange(0), wants=INPUT).shape[0] == 0


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_caller_are_left_as_they_were(images: np.ndarray, training: bool) -> None:
    model = Corners().train(training)
    for _ in inference.batches(model, model, images, None, INPUT):
        assert not torch.is_inference_mode_enabled()
    assert model.training == training


def test_near_certainty_keeps_its_order(images: np.ndarray) -> None:
    certain = images.copy()
    certain[:, 0, 0] = np.arange(249, 256)
    found = inference.probabilities(Corners(), certain, wants=Input(8, 0.0, 1 / 30))[:, 0]
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize(("inside", "size"), [(4, 8), (8, 8), (16, 8)])
def test_lungs_are_at_the_images_resolution(inside: int, size: int) -> None:
    """A model that takes bright for lung gives the bright half back, whatever size it works at."""
    pictures = np.zeros((3, size, size), dtype=np.uint8)
    pictures[:, :, size // 2 :] = 255
    pictures[2] = 0
    found = inference.lungs(nn.Identity(), pictures, wants=replace(INPUT, img_size=inside))
    assert found.dtype == bool
    assert np.array_equal(found, pictures > 127)
