"""The loss of a classification: unknown labels are out, both classes weigh the same, odds are kept; few labels."""

from pathlib import Path

import finetunings
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sscxr.data.cache.cache import Cache, CacheError
from sscxr.finetuning import classify
from sscxr.finetuning.classify import balanced_loss, draw
from sscxr.finetuning.finetune import FinetuneError, Split

UNKNOWN = float("nan")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return finetunings.spotted(tmp_path_factory.mktemp("data") / "cache")


def logits(batch: int = 6, labels: int = 2) -> Tensor:
    return torch.randn(batch, labels, generator=torch.Generator().manual_seed(0)).requires_grad_()


# ---- the loss


def test_unknown_labels_have_no_part_in_it() -> None:
    said = logits(3)
    wanted = torch.tensor([[1.0, UNKNOWN], [UNKNOWN, 0.0], [0.0, UNKNOWN]])
    loss = balanced_loss(said, wanted, torch.zeros(2))
    loss.backward()
    assert said.grad is not None
    assert ((said.grad == 0) == wanted.isnan()).all()
    known = wanted.isfinite()
    plain = nn.functional.binary_cross_entropy_with_logits(said[known], wanted[known])
    assert torch.allclose(loss, plain)


def test_nothing_known_is_no_loss_and_no_gradient() -> None:
    said = logits(2)
    loss = balanced_loss(said, torch.full((2, 2), UNKNOWN), torch.ones(2))
    loss.backward()
    assert loss == 0
    assert said.grad is not None
    assert (said.grad == 0).all()


@pytest.mark.parametrize("present", [1, 3, 9])
def test_balanced_or_not_the_logits_are_calibrated(present: int) -> None:
    wanted = torch.zeros(10, 1)
    wanted[:present] = 1
    odds = torch.from_numpy(classify.log_odds(wanted.numpy()))
    for prior in (odds, torch.zeros(1)):
        said = odds.clone().requires_grad_()
        balanced_loss(said.expand(10, 1), wanted, prior).backward()
        assert said.grad is not None
        assert said.grad.abs() < 1e-6, (
            "the label's own odds are the best that can be said of all images alike"
        )


def test_both_classes_pull_as_hard() -> None:
    wanted = torch.zeros(10, 1)
    wanted[:2] = 1
    prior = torch.from_numpy(classify.log_odds(wanted.numpy()))
    said = prior.expand(10, 1).clone().requires_grad_()
    balanced_loss(said, wanted, prior).backward()
    assert said.grad is not None
    assert torch.allclose(-said.grad[:2].sum(), said.grad[2:].sum())
    assert torch.allclose(said.grad[0] / said.grad[5], torch.tensor([-4.0])), "by the odds: 8 to 2"


def test_smoothing_moves_the_targets() -> None:
    said = torch.tensor([[np.log(0.95 / 0.05)]], dtype=torch.float32, requires_grad=True)
    balanced_loss(said, torch.ones(1, 1), torch.zeros(1), smoothing=0.1).backward()
    assert said.grad is not None
    assert said.grad.abs() < 1e-6


def test_log_odds() -> None:
    wanted = np.array([[1, 0, np.nan, 1], [1, 0, np.nan, 0], [0, 0, np.nan, np.nan]], dtype=np.float32)
    found = classify.log_odds(wanted)
    assert found == pytest.approx([np.log(2), np.log(1 / 6), 0, 0])
    many = np.zeros((1000, 1), dtype=np.float32)
    assert classify.log_odds(many) == pytest.approx([np.log(1 / 20)]), "capped"


# ---- which images


def test_rows_without_any_known_label_are_out(cache: Cache) -> None:
    wanted = classify.targets(cache, ["rare"])
    rows = classify.labelled(wanted, cache.rows())
    assert 0 < len(rows) < len(cache)
    assert np.isfinite(wanted[rows]).all()
    both = classify.targets(cache, ["spot", "rare"])
    assert len(classify.labelled(both, cache.rows())) == len(cache)
    with pytest.raises(CacheError, match="no label 'sopt'; its labels: spot, rare"):
        classify.targets(cache, ["sopt"])


def test_one_class_only_is_refused_with_its_counts(cache: Cache) -> None:
    wanted = classify.targets(cache, ["spot", "rare"])
    spotted, plain = np.flatnonzero(wanted[:, 0] == 1), np.flatnonzero(wanted[:, 0] == 0)
    none = np.arange(0)
    with pytest.raises(FinetuneError, match=r"label 'spot': 60 of the training images have it and 0 do not"):
        classify.check_classes(wanted, Split(spotted, none, plain), ["spot", "rare"])
    with pytest.raises(FinetuneError, match=r"'spot': 0 of the test images have it and 60 do not"):
        classify.check_classes(wanted, Split(cache.rows(), none, plain), ["spot", "rare"])
    classify.check_classes(wanted, Split(cache.rows(), none, none), ["spot", "rare"])


@pytest.mark.parametrize("per_class", [1, 7, 20])
def test_few_labels_are_as_many_of_each_class_from_as_many_patients(cache: Cache, per_class: int) -> None:
    wanted = classify.targets(cache, ["spot"])
    rows = np.arange(20, 110)
    drawn = draw(cache, wanted, rows, ["spot"], per_class=per_class, seed=0)
    assert len(set(drawn)) == len(drawn) == 2 * per_class
    assert set(drawn) <= set(rows)
    assert (wanted[drawn] == 1).sum() == per_class
    assert cache.index["group"].iloc[drawn].nunique() == 2 * per_class, "no second image before each gave one"


def test_few_labels_repeat_with_the_seed_and_not_with_the_salt(cache: Cache, tmp_path: Path) -> None:
    wanted = classify.targets(cache, ["spot"])

    def found(where: Cache, seed: int) -> list[int]:
        return draw(where, wanted, where.rows(), ["spot"], per_class=10, seed=seed).tolist()

    assert found(cache, 0) == found(cache, 0) != found(cache, 1)
    salted = finetunings.spotted(
        tmp_path / "cache", group=[f"{(number * 7919) % 1000:04d}" for number in np.arange(120) // 2]
    )
    assert found(salted, 0) == found(cache, 0)


def test_few_of_several_labels(cache: Cache) -> None:
    wanted = classify.targets(cache, ["spot", "rare"])
    drawn = draw(cache, wanted, cache.rows(), ["spot", "rare"], per_class=5, seed=0)
    for place in (0, 1):
        assert (wanted[drawn, place] == 1).sum() >= 5
        assert (wanted[drawn, place] == 0).sum() >= 5
    with pytest.raises(
        FinetuneError, match=r"50 images per class .* but there are 16 training images with label 'rare'"
    ):
        draw(cache, wanted, cache.rows(), ["spot", "rare"], per_class=50, seed=0)
