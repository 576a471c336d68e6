"""The split goes by patient; the loop keeps the best, stops in time, leaves a frozen encoder alone, and repeats."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import finetunings
import numpy as np
import pytest
import releases
import torch
from torch import Tensor, nn

from sscxr.data.cache.cache import Cache
from sscxr.finetuning import finetune
from sscxr.finetuning.finetune import Epoch, FinetuneError, Split
from sscxr.models.classifier import Classifier
from sscxr.models.encoder import build
from sscxr.training.optim import set_rates


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return finetunings.spotted(tmp_path_factory.mktemp("data") / "cache")


def groups(cache: Cache, rows: np.ndarray[Any, Any]) -> set[str]:
    return set(cache.index["group"].to_numpy()[rows])


def split(cache: Cache, rows: Any = None, test_share: float = 0.3, val_share: float = 0.25) -> Split:
    rows = cache.rows() if rows is None else rows
    return finetune.split(cache, rows, test_share=test_share, val_share=val_share)


# ---- the split


def test_every_row_is_in_one_part_and_no_patient_in_two(cache: Cache) -> None:
    parts = split(cache)
    rows = np.concatenate([parts.train, parts.val, parts.test])
    assert sorted(rows) == list(range(len(cache)))
    each = [groups(cache, part) for part in (parts.train, parts.val, parts.test)]
    assert sum(map(len, each)) == 60
    assert set(parts.test) == set(np.flatnonzero(cache.held_out(0.3))), "those that pretraining leaves out"
    assert len(each[1]) == 15


def test_a_patient_stays_in_testing_whatever_else_is_asked(cache: Cache) -> None:
    north = finetune.usable(cache, laterals=False, sources=["north"])
    assert set(split(cache, north).test) == set(split(cache).test) & set(north)
    assert set(split(cache, val_share=0.0).test) == set(split(cache).test)
    assert not len(split(cache, val_share=0.0).val)
    none = split(cache, test_share=0.0)
    assert not len(none.test)


def test_a_group_of_which_any_image_is_set_aside_is_no_training_patient(tmp_path: Path) -> None:
    places = ((np.arange(40) // 2 * 0.618034) % 1).round(6)
    places[7] = 0.01  # its other image has another place
    mixed = finetunings.spotted(tmp_path / "cache", patients=20, split=places)
    parts = split(mixed)
    assert 7 in parts.test
    assert 6 not in np.concatenate([parts.train, parts.val])


@pytest.mark.parametrize(
    ("patients", "tests", "message"),
    [
        (1, 1, "1 patient with 2 usable"),
        (2, 1, "too few: 1 for training and validation"),
        (3, 0, "0 for testing"),
    ],
)
def test_fewer_patients_than_parts(tmp_path: Path, patients: int, tests: int, message: str) -> None:
    places = np.repeat([0.0] * tests + [1.0] * (patients - tests), 2)
    few = finetunings.spotted(tmp_path / "cache", patients=patients, split=places)
    with pytest.raises(FinetuneError, match=message):
        split(few)


def test_three_patients_are_enough_for_three_parts(tmp_path: Path) -> None:
    few = finetunings.spotted(tmp_path / "cache", patients=3, split=np.repeat([0.0, 0.5, 1.0], 2))
    assert [part.tolist() for part in (split(few).test, split(few).val, split(few).train)] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]


def test_sources_restrict_and_are_named_where_they_are_not_there(cache: Cache) -> None:
    south = finetune.usable(cache, laterals=False, sources=["south"])
    assert set(cache.index["source"].iloc[south]) == {"south"}
    both = finetune.usable(cache, laterals=False, sources=["north", "south"])
    assert both.tolist() == finetune.usable(cache, laterals=False).tolist()
    with pytest.raises(FinetuneError, match="no source 'east'; its sources: north, south"):
        finetune.usable(cache, laterals=False, sources=["east"])


def test_what_was_trained_on_is_written_down(cache: Cache) -> None:
    parts = split(cache)
    lines = finetune.trained_on(cache, parts).splitlines()
    assert lines[0] == "group,part"
    for part, rows in (("train", parts.train), ("val", parts.val)):
        assert {line.split(",")[0] for line in lines if line.endswith(part)} == groups(cache, rows)
    assert not groups(cache, parts.test) & {line.split(",")[0] for line in lines}


# ---- the loop


class Learner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = build(releases.NAME, **releases.SIZES, drop_path=0.2)
        self.head = nn.Linear(192, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder.forward_features(images)[:, 1:].mean(dim=1))


class Toy:
    """Learns nothing in particular; its scores are given."""

    def __init__(self, scores: list[float]) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = Learner()
        self.scores: Iterator[float] = iter(scores)
        self.seen: list[tuple[int, ...]] = []
        self.weights: list[Tensor] = []
        self.modes: list[tuple[bool, bool]] = []

    def batch(self, rows: Any, generator: torch.Generator) -> Tensor:
        self.seen.append(tuple(rows))
        return torch.rand(len(rows), 1, 32, 32, generator=generator)

    def loss(self, batch: Tensor) -> Tensor:
        self.modes.append((self.model.training, self.model.encoder.training))
        return (self.model(batch) - 1).square().mean()

    def score(self, rows: Any) -> float:
        assert not self.model.training
        self.weights.append(self.model.head.weight.detach().clone())
        return next(self.scores)


ROWS = Split(np.arange(8), np.arange(8, 12), np.arange(12, 14))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return releases.write(tmp_path_factory.mktemp("release") / "encoder")


def config(encoder: Path, *overrides: str) -> Any:
    return finetunings.settings(encoder, "finetune.batch_size=4", *overrides)


def test_the_best_weights_are_kept_and_patience_ends_it(encoder: Path) -> None:
    toy, told = Toy([0.5, 0.8, 0.7, 0.8, 0.6, 0.9]), []
    settings = config(encoder, "finetune.epochs=6", "finetune.patience=3")
    history = finetune.fine_tune(toy, ROWS, settings, on_epoch=told.append)
    assert history.best == 2, "an equal score is no better one"
    assert [one.score for one in history.epochs] == [0.5, 0.8, 0.7, 0.8, 0.6]
    assert told == list(history.epochs)
    assert history.planned == 6
    assert torch.equal(toy.model.head.weight, toy.weights[1])
    assert not toy.model.training


def test_without_patience_it_goes_on_to_the_end(encoder: Path) -> None:
    toy = Toy([0.5, 0.4, 0.3, 0.2])
    history = finetune.fine_tune(toy, ROWS, config(encoder, "finetune.patience=0"))
    assert (len(history.epochs), history.best) == (4, 1)
    assert torch.equal(toy.model.head.weight, toy.weights[0])


@pytest.mark.parametrize("val", [np.arange(8, 12), np.arange(0)])
def test_where_nothing_tells_which_is_best_the_last_weights_are_kept(
    encoder: Path, val: np.ndarray[Any, Any]
) -> None:
    toy = Toy([math.nan] * 4)
    parts = Split(ROWS.train, val, ROWS.test)
    history = finetune.fine_tune(toy, parts, config(encoder, "finetune.patience=1"))
    assert (len(history.epochs), history.best) == (4, 4)
    if len(val):
        assert torch.equal(toy.model.head.weight, toy.weights[-1])


def test_every_epoch_sees_every_training_image_once_in_an_order_of_its_own(encoder: Path) -> None:
    toy = Toy([0.1, 0.2, 0.3, 0.4])
    finetune.fine_tune(toy, ROWS, config(encoder))
    epochs = [toy.seen[place] + toy.seen[place + 1] for place in range(0, 8, 2)]
    assert all(sorted(one) == list(range(8)) for one in epochs)
    assert len(set(epochs)) > 1


def test_a_frozen_encoder_stays_as_it_is_and_in_eval_mode(encoder: Path) -> None:
    toy = Toy([0.1, 0.2, 0.3, 0.4])
    before = {name: tensor.clone() for name, tensor in toy.model.state_dict().items()}
    finetune.fine_tune(toy, ROWS, config(encoder, "finetune.frozen=true"))
    after = toy.model.state_dict()
    assert set(toy.modes) == {(True, False)}
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == name.startswith("encoder."), name


def test_two_runs_give_the_same_weights_and_the_seed_matters(encoder: Path) -> None:
    ends = []
    for seed in (0, 0, 1):
        toy = Toy([0.1, 0.2, 0.3, 0.4])
        torch.manual_seed(len(ends))  # what the global generator holds is of no matter
        finetune.fine_tune(toy, ROWS, config(encoder, f"run.seed={seed}"))
        ends.append(toy.model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not torch.equal(ends[0]["head.weight"], ends[2]["head.weight"])


def test_a_linear_head_on_a_frozen_encoder_learns_faster(encoder: Path) -> None:
    settings = config(encoder, "finetune.lr=1e-3")
    model = Classifier(build(releases.NAME, **releases.SIZES), labels=1, pool="mean")

    def rates(model: nn.Module) -> set[float]:
        optimiser = finetune.optimiser(model, settings.finetune)
        set_rates(optimiser, 1e-3, 0.0)
        return {group["lr"] for group in optimiser.param_groups}

    assert max(rates(model)) == 1e-3
    finetune.freeze(model.encoder)
    settings.finetune.frozen = True
    assert list(rates(model)) == pytest.approx([2e-2])
    toy = Toy([]).model
    finetune.freeze(toy.encoder)
    assert rates(toy) == {1e-3}, "a decoder's rate stays"


def test_few_images_are_passed_over_more_often(encoder: Path) -> None:
    settings = config(encoder, "finetune.min_steps=30", "finetune.epochs=10").finetune
    assert finetune.planned_epochs(8, settings) == 15  # two batches each
    assert finetune.planned_epochs(3, settings) == 30
    assert finetune.planned_epochs(400, settings) == 10


def test_a_loss_that_is_not_finite_is_one_line_without_a_row(encoder: Path) -> None:
    class Broken(Toy):
        def loss(self, batch: Tensor) -> Tensor:
            return super().loss(batch) * math.nan

    with pytest.raises(FinetuneError, match=r"no longer finite in epoch 1; lower finetune\.lr"):
        finetune.fine_tune(Broken([0.1]), ROWS, config(encoder))


def test_weights_that_the_last_step_made_nan_are_the_same_line(encoder: Path) -> None:
    class Steep(Toy):
        def loss(self, batch: Tensor) -> Tensor:
            weight = next(self.model.parameters())
            return super().loss(batch) + (0 * weight).sum().sqrt()  # a loss of 0 more, a gradient of NaN

    with pytest.raises(FinetuneError, match="no longer finite in epoch 1"):
        finetune.fine_tune(Steep([0.1]), ROWS, config(encoder, "finetune.batch_size=64", "finetune.epochs=1"))


def test_a_history_adds_up() -> None:
    epochs = [Epoch(1, 0.5, 0.7, 8, 1.5), Epoch(2, 0.4, 0.8, 8, 2.0)]
    assert finetune.History(epochs, 4, 2).seconds == 3.5
