"""Probes: the right features, tasks within a source, and no patient on both sides."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from caches import make_cache
from torch import nn

from sscxr.data.cache.cache import Cache
from sscxr.evaluation import few, probe
from sscxr.evaluation.tasks import find_tasks
from sscxr.models import inference
from sscxr.models.encoder import pooling_args
from sscxr.models.inference import Input

INPUT = Input(16, 0.5, 0.25, batch_size=2)


class Patches(nn.Module):
    """An encoder whose patch tokens are the four quarters' pixels and whose CLS token is nonsense."""

    num_prefix_tokens = 1

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        tokens = nn.functional.unfold(images, 8, stride=8).transpose(1, 2)
        return torch.cat([torch.full_like(tokens[:, :1], 1e6), tokens], dim=1)


class Blind(nn.Module):
    """An encoder whose features are noise: the same for the same image, but without meaning."""

    num_prefix_tokens = 1

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        seeds = (images * 1e4).long().abs().sum(dim=(1, 2, 3)).tolist()
        rows = [torch.randn(5, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows)


def labelled_cache(folder: Path, patients: int = 80, per_patient: int = 2, signal: float = 60.0) -> Cache:
    """Images of noise, brighter at the top left where the label is 1; two sources of one hospital and one more."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(patients), per_patient)
    count = len(group)
    label = (group % 2).astype(float)
    images = rng.normal(120, 20, (count, 16, 16))
    images[:, :8, :8] += signal * label[:, None, None] * rng.random(count)[:, None, None]
    index = {
        "group": [f"g{number}" for number in group],
        "source": np.array(["ward", "clinic", "other"])[(group // 2) % 3],
        "split": ((group * 37) % 100) / 100,
        "label:normal": 1 - label,
        "label:pneumonia": label,
    }
    return make_cache(folder, images.clip(0, 255).astype(np.uint8), index)


def run(cache: Cache, trained: nn.Module | None = None, **settings: object) -> list[probe.Comparison]:
    settings = {"test_share": 0.4, "min_cases": 4, "resamples": 100, "neighbours": 5, **settings}
    return probe.run(trained or Patches(), Blind(), cache, wants=INPUT, **settings)


@pytest.mark.parametrize("pooling", ["avg", "token"])
def test_features_are_the_mean_of_the_patch_tokens_or_the_class_token(tmp_path: Path, pooling: str) -> None:
    cache = make_cache(tmp_path, np.random.default_rng(0).integers(0, 256, (5, 24, 24), dtype=np.uint8), {})
    torch.manual_seed(0)
    encoder = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=8,
        in_chans=1,
        num_classes=0,
        depth=2,
        drop_path_rate=0.9,
        **pooling_args(pooling),
    ).train()
    found = inference.features(encoder, cache.images, np.array([3, 0, 4]), wants=INPUT)
    grey = torch.from_numpy(cache.images[[3, 0, 4]])[:, None] / 255
    inputs = (nn.functional.interpolate(grey, 16, mode="bilinear", antialias=True) - 0.5) / 0.25
    assert encoder.training
    with torch.no_grad():
        tokens = encoder.eval().forward_features(inputs)
    expected = (tokens[:, 0] if pooling == "token" else tokens[:, 1:].mean(dim=1)).numpy()
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, abs=1e-4)


def test_no_rows_no_features(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, np.zeros((1, 16, 16), np.uint8), {})
    assert len(inference.features(Patches(), cache.images, np.array([], dtype=np.int64), wants=INPUT)) == 0


@pytest.mark.slow
def test_what_can_be_seen_is_found_and_beats_noise(tmp_path: Path) -> None:
    found = run(labelled_cache(tmp_path), cohorts={"hospital": ["ward", "clinic"]})
    assert [(pair.trained.kind, pair.trained.cohort, pair.trained.label) for pair in found] == [
        ("linear", "hospital", "pneumonia"),
        ("k-NN", "hospital", "pneumonia"),
    ]
    for pair in found:
        assert pair.trained.auroc > 0.8
        assert pair.trained.low <= pair.trained.auroc <= pair.trained.high
        assert pair.gain == pytest.approx(pair.trained.auroc - pair.untrained.auroc)
        assert pair.better
    assert found == run(labelled_cache(tmp_path), cohorts={"hospital": ["ward", "clinic"]})


def test_a_patient_is_never_on_both_sides(tmp_path: Path) -> None:
    cache = labelled_cache(tmp_path)
    # A cache that puts one of a patient's two images below the test share, against its own contract.
    cache.index.loc[::2, "split"] = 0.0
    tasks = find_tasks(cache, test_share=0.4, min_cases=1, cohorts={"all": ["ward", "clinic", "other"]})
    assert not tasks  # every patient has an image set aside, so none is left to train on
    cache.index.loc[::2, "split"] = np.where(np.arange(80) % 4 < 2, 0.0, 1.0)
    (task,) = find_tasks(cache, test_share=0.4, min_cases=1, cohorts={"all": ["ward", "clinic", "other"]})
    assert not set(task.train_groups) & set(task.test_groups)


@pytest.mark.slow
def test_planted_leak_would_be_seen(tmp_path: Path) -> None:
    """Images that say who the patient is and nothing of the label: only a leaky split tells the label."""
    rng = np.random.default_rng(1)
    patients, copies = 120, 4
    faces = rng.integers(0, 256, (patients, 16, 16), dtype=np.uint8)
    group = np.repeat(np.arange(patients), copies)
    label = np.repeat(rng.random(patients) < 0.5, copies).astype(float)
    index = {"group": [f"g{g}" for g in group], "split": (group % 10) / 10, "label:x": label}
    honest = run(make_cache(tmp_path / "honest", faces[group], index))
    assert all(0.25 < pair.trained.auroc < 0.75 for pair in honest)
    leaky = {**index, "group": [f"g{n}" for n in range(len(group))], "split": np.arange(len(group)) % 2}
    leaked = run(make_cache(tmp_path / "leaky", faces[group], leaky))
    assert all(pair.trained.auroc > 0.95 for pair in leaked)


@pytest.mark.slow
def test_regularisation_is_chosen_over_patients(tmp_path: Path) -> None:
    """With features that name the patient, folds by image would choose no regularisation at all."""
    rng = np.random.default_rng(2)
    faces, label = rng.normal(size=(60, 100)), rng.random(60) < 0.5
    inputs, positive, groups = np.repeat(faces, 5, 0), np.repeat(label, 5), np.repeat(np.arange(60), 5)
    by_patient = probe._best_strength(inputs, positive, groups)
    by_image = probe._best_strength(inputs, positive, np.arange(300))
    assert by_patient == probe.STRENGTHS[0]
    assert by_image > 1


@pytest.mark.slow
def test_salt_changes_no_figure(tmp_path: Path) -> None:
    cache = labelled_cache(tmp_path)
    before = run(cache, cohorts={"ward": ["ward"]})
    cache.index["group"] = [f"{(int(name[1:]) * 7919) % 1009:x}" for name in cache.index["group"]]
    assert before
    assert run(cache, cohorts={"ward": ["ward"]}) == before


def test_tasks_stay_within_a_source_and_out_of_laterals(tmp_path: Path) -> None:
    cache = labelled_cache(tmp_path)
    cache.index.loc[:9, "view"] = "L"
    tasks = find_tasks(cache, test_share=0.4, min_cases=4)
    assert {(task.cohort, task.label) for task in tasks} == {
        ("ward", "pneumonia"),
        ("clinic", "pneumonia"),
        ("other", "pneumonia"),
    }
    for task in tasks:
        rows = np.concatenate([task.train, task.test])
        assert set(cache.index["source"][rows]) == {task.cohort}
        assert rows.min() > 9


def test_few_cases_one_class_and_unknown_labels_are_no_task(tmp_path: Path) -> None:
    cache = labelled_cache(tmp_path)
    assert run(cache, min_cases=1000) == []
    cache.index["label:pneumonia"] = 1.0
    cache.index["label:normal"] = np.nan
    assert run(cache) == []
    assert run(make_cache(tmp_path / "bare", np.zeros((3, 16, 16), np.uint8), {})) == []


def test_more_neighbours_than_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, positive = rng.normal(size=(6, 4)), np.array([True, False] * 3)
    scores = probe.knn_scores(train, positive, train, neighbours=50)
    assert scores.shape == (6,)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (scores[positive] > 0.5).all()
    assert (scores[~positive] < 0.5).all()


def test_few_labels(tmp_path: Path) -> None:
    """An encoder that shows the label beats a blind one with the same ten labels, beyond the interval."""
    cache = labelled_cache(tmp_path, patients=200)
    tasks = find_tasks(cache, test_share=0.4, min_cases=5, cohorts={"all": ["ward", "clinic", "other"]})
    assert [task.label for task in tasks] == ["pneumonia"]
    encoders: dict[str, tuple[nn.Module, Input]] = {"sees": (Patches(), INPUT), "blind": (Blind(), INPUT)}
    settings = {"reference": "blind", "per_class": 5, "draws": 4, "resamples": 200}
    [found] = few.few_labels(encoders, cache, tasks, **settings)  # type: ignore[arg-type]
    assert (found.per_class, found.draws) == (5, 4)
    assert found.auroc["sees"].value > 0.8
    assert found.auroc["blind"].low < 0.5 < found.auroc["blind"].high
    assert found.gain.keys() == {"sees"}
    assert found.gain["sees"].low > 0
    assert found.gain["sees"].value == pytest.approx(found.auroc["sees"].value - found.auroc["blind"].value)
    again = few.few_labels(encoders, cache, tasks, **settings)  # type: ignore[arg-type]
    assert again == [found]
    assert few.few_labels(encoders, cache, tasks, reference="blind", per_class=100) == []


def test_a_draw_of_few_labels(tmp_path: Path) -> None:
    """A draw has one image of each of so many patients a class, and another draw has others."""
    cache = labelled_cache(tmp_path)
    [task, *_] = find_tasks(cache, test_share=0.4, min_cases=3)
    first, second = (few.drawn(task, 4, 0, number) for number in range(2))
    assert task.train_positive[first].tolist() == [True] * 4 + [False] * 4
    assert len(set(task.train_groups[first])) == 8
    assert set(first) != set(second)
