"""Gradients of single patients, clipped and made noisy, against a plain loop; and the secret numbers."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sscxr.training.private import PatientGradients, Privacy, sampled
from sscxr.training.secret import Secret

CLIP = 0.5


def secret(seed: int = 0) -> Secret:
    """Known keys, so that a test gives the same each time."""
    numbers = itertools.count(seed)
    return Secret(lambda: next(numbers).to_bytes(32, "big"))


def privacy(noise: float, patients: int = 10, most: int = 4) -> Privacy:
    return Privacy(noise, CLIP, patients, most, secret())


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 1))


def loss_of(model: nn.Module, images: Tensor, wanted: Tensor) -> Tensor:
    return (model(images).squeeze(-1) - wanted).square().mean()


def private(model: nn.Module, noise: float, *, expected: int = 1, at_once: int = 3) -> PatientGradients:
    return PatientGradients(
        model, lambda *batch: loss_of(model, *batch), privacy(noise), expected=expected, at_once=at_once
    )


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def inputs(images: int = 7) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(1)
    return 3 * torch.randn(images, 6, generator=drawn), torch.randn(images, generator=drawn)


OWNERS = np.array(["b", "a", "c", "a", "d", "a", "d"])


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_it_is_the_sum_of_each_patients_clipped_mean(model: nn.Module, at_once: int) -> None:
    batch = inputs()
    private(model, 0.0, expected=5, at_once=at_once)(batch, OWNERS)
    found, total, clipped = flat(model), torch.zeros(0), 0
    for patient in sorted(set(OWNERS)):
        model.zero_grad()
        loss_of(model, *(one[torch.from_numpy(patient == OWNERS)] for one in batch)).backward()
        clipped += int(flat(model).norm() > CLIP)
        part = flat(model) * min(1.0, CLIP / float(flat(model).norm()))
        total = part if not len(total) else total + part
    assert clipped, "or the test shows nothing of clipping"
    torch.testing.assert_close(found, total / 5, rtol=1e-4, atol=1e-6)


def test_no_patient_adds_more_than_the_bound(model: nn.Module) -> None:
    images, wanted = inputs()
    for scale in (1.0, 1e3, 1e18, math.inf, math.nan):  # a gradient that overflows adds nothing
        changed = images.clone()
        changed[OWNERS == "a"] *= scale
        with_all, without = [], []
        for found, kept in ((with_all, OWNERS != "-"), (without, OWNERS != "a")):
            chosen = torch.from_numpy(kept)
            private(model, 0.0)((changed[chosen], wanted[chosen]), OWNERS[kept])
            found.append(flat(model))
        assert float((with_all[0] - without[0]).double().norm()) <= CLIP * (1 + 1e-6)


def test_the_noise_has_its_size_also_without_any_patient(model: nn.Module) -> None:
    drawn = []
    gradients = private(model, 2.0, expected=4)
    for _ in range(200):
        gradients(tuple(one[:0] for one in inputs()), OWNERS[:0])
        drawn.append(flat(model))
    values = torch.stack(drawn).flatten().double()
    assert float(values.std()) == pytest.approx(2.0 * CLIP / 4, rel=5 / math.sqrt(2 * len(values)))
    assert abs(float(values.mean())) < 5 * 0.25 / math.sqrt(len(values))


def test_batchnorm_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="BatchNorm1d couples"):
        private(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)), 1.0)


def test_patients_are_drawn_independently_with_a_few_images_each() -> None:
    groups = np.array(["x"] * 9 + ["y"] * 2 + [f"p{number}" for number in range(40)])
    rows = np.delete(np.arange(len(groups)), 3)
    steps = list(sampled(np.concatenate([rows, rows[:3]]), groups, 0.25, 400, 4, secret()))
    assert len(steps) == 400
    of_x = [int((groups[step] == "x").sum()) for step in steps]
    of_y = [int((groups[step] == "y").sum()) for step in steps]
    assert set(of_x) == {0, 4}
    assert set(of_y) == {0, 2}
    assert all(len(set(step)) == len(step) and 3 not in step for step in steps)
    assert len({row for step in steps for row in step if groups[row] == "x"}) == 8, (
        "all of its images, in turn"
    )
    drawn = [len(np.unique(groups[step])) for step in steps]
    assert np.mean(drawn) == pytest.approx(42 * 0.25, rel=0.1)
    assert np.var(drawn) == pytest.approx(42 * 0.25 * 0.75, rel=0.3), "of a binomial, not of a fixed size"
    both = np.mean([x > 0 and y > 0 for x, y in zip(of_x, of_y, strict=True)])
    assert both == pytest.approx(0.25**2, abs=0.04)
    assert all(not len(step) for step in sampled(rows, groups, 0.0, 3, 4, secret()))


def test_secret_numbers_are_normal_and_never_the_same() -> None:
    numbers = secret().normal(200_001)
    assert len(numbers) == 200_001
    assert numbers.dtype == torch.float64
    from scipy import stats

    assert stats.kstest(numbers.numpy(), "norm").pvalue > 0.001
    assert stats.kstest(secret(7).uniform(50_000), "uniform").pvalue > 0.001
    torch.manual_seed(0)
    one = Secret().normal(100)
    torch.manual_seed(0)
    assert not torch.equal(one, Secret().normal(100)), "no seed gives them again"
    assert not torch.equal(Secret().normal(100), Secret().normal(100))
