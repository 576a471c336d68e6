"""What makes the step faster or smaller changes nothing but rounding."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import federation as fed
import numpy as np
import pytest
import torch
from caches import make_cache
from torch import Tensor, nn

from sscxr import seeds
from sscxr.data.cache.cache import open_cache
from sscxr.data.feed import feed
from sscxr.stages.pretrain import SiteTraining, build_objective
from sscxr.training import compiled, optim
from sscxr.training.loop import Stretch, train

CPU = torch.device("cpu")


def trained(folder: Path, *overrides: str, images: int = 20) -> tuple[float, dict[str, Tensor]]:
    """The loss and the weights of one round, without drop-path unless told otherwise."""
    if not folder.exists():
        pixels = np.random.default_rng(0).integers(0, 256, (images, 32, 32), dtype=np.uint8)
        make_cache(folder, pixels, {"split": (np.arange(images) + 0.5) / images})
    config = fed.settings("encoder.drop_path=0", "pretrain.batch_size=8", "pretrain.amp=fp32", *overrides)
    training = SiteTraining(config, CPU, open_cache(folder))
    done = training.train_round(np.arange(images), site="anna", round_number=0, budget=600.0)
    return done.loss, {name: tensor.clone() for name, tensor in training.objective.state_dict().items()}


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    # A step of Adam is of the size of the rate whatever the gradient's, so rounding shows where that is near 0.
    for name, tensor in one.items():
        assert (tensor - other[name]).abs().mean() < 1e-5, name


# ---- gradient accumulation


@pytest.mark.parametrize("corrupted_only", [True, False])
@pytest.mark.parametrize("count", [2, 3, 7, 50])
def test_the_parts_of_a_batch_add_up_to_its_loss_and_gradients(count: int, corrupted_only: bool) -> None:
    config = fed.settings("encoder.drop_path=0", f"gmml.corrupted_only={corrupted_only}")
    objective = build_objective(config)
    images = torch.randn(7, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = objective([images], seeds.generator("cpu", 0, "corrupt"), 0.0)
    whole.backward()
    gradients = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    parts = list(objective.parts([images], seeds.generator("cpu", 0, "corrupt"), 0.0, count))
    assert len(parts) == min(count, 7)
    assert len(gradients) > 10
    for part in parts:
        part.backward()
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients.get(name), rtol=1e-3, atol=1e-7)


def test_an_accumulated_round_is_the_round_of_the_whole_batches(tmp_path: Path) -> None:
    loss, weights = trained(tmp_path / "cache")
    in_parts, others = trained(tmp_path / "cache", "pretrain.accumulate=3")
    assert in_parts == pytest.approx(loss, rel=1e-5)
    close(weights, others)


def test_a_part_is_forgotten_before_the_next_is_worked_out() -> None:
    """That is what saves the memory."""
    net, events = nn.Linear(2, 1), []

    def parts(batch: Tensor) -> Iterator[Tensor]:
        for number in range(3):
            loss = net(batch).square().mean()
            loss.register_hook(lambda _, number=number: events.append(f"backward {number}"))
            events.append(f"forward {number}")
            yield loss

    train(
        net,
        optim.adamw(net, lr=0.1, betas=(0.9, 0.999)),
        [(torch.ones(4, 2), [0, 1, 2, 3])],
        parts,
        stretch=Stretch(1, 0.0, 1.0),
        schedule=optim.Schedule(lr=0.1, min_lr=0.1, warmup=0.0, weight_decay=0.0, weight_decay_end=0.0),
        clip=1e9,
        per_tensor=True,
    )
    assert events == [f"{way} {number}" for number in range(3) for way in ("forward", "backward")]


# ---- activation checkpointing


@pytest.mark.slow
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointing_changes_nothing(tmp_path: Path, drop_path: float) -> None:
    """Drop-path too draws the same the second time that a block is computed."""
    settings = ("encoder.depth=3", "gmml.blocks=[1,3]", f"encoder.drop_path={drop_path}")
    loss, weights = trained(tmp_path / "cache", *settings)
    again, others = trained(tmp_path / "cache", *settings, "pretrain.checkpointing=true")
    assert again == pytest.approx(loss, rel=1e-6)
    close(weights, others)


# ---- the feed


def test_the_feed_gives_the_batches_in_order_one_ahead_of_the_training() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    asked: list[int] = []

    def batches() -> Iterator[np.ndarray]:
        for number in range(4):
            asked.append(number)
            yield np.array([number, 19 - number, number])

    for number, (pixels, rows) in enumerate(feed(images, batches(), CPU)):
        assert rows.tolist() == [number, 19 - number, number]
        assert np.array_equal(pixels.numpy(), images[rows])
        assert asked == list(range(min(number + 2, 4)))


def test_a_feed_of_nothing_and_one_that_cannot_be_read() -> None:
    assert list(feed(np.zeros((2, 4, 4), np.uint8), [], CPU)) == []
    with pytest.raises(IndexError):
        list(feed(np.zeros((2, 4, 4), np.uint8), [np.array([0]), np.array([7])], CPU))


# ---- torch.compile


def test_where_compiling_fails_training_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: object, **options: object) -> object:
        def fail(batch: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    net = nn.Linear(2, 1)
    call = compiled.compiled(net)
    with caplog.at_level(logging.WARNING, logger="sscxr"):
        for _ in range(3):
            assert torch.equal(call(torch.ones(2, 2)), net(torch.ones(2, 2)))
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile does not work here, training continues without it: no C++ compiler and more"
    ]


def test_an_error_of_the_model_is_no_failed_compilation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(batch: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    with pytest.raises(torch.OutOfMemoryError):
        compiled.compiled(wrong)(torch.ones(2, 2))
    assert not caplog.records


@pytest.mark.parametrize(
    ("setting", "on_cpu", "on_gpu"), [("auto", False, True), ("true", True, True), ("false", False, False)]
)
def test_where_compiling_is_wanted(setting: str, on_cpu: bool, on_gpu: bool) -> None:
    assert compiled.wanted(setting, CPU) is on_cpu
    assert compiled.wanted(setting, torch.device("cuda")) is on_gpu
    assert fed.settings(f"run.compile={setting}").run.compile == setting


ROUND = """
import sys
from pathlib import Path
import torch, test_speed
loss, weights = test_speed.trained(Path(sys.argv[1]), "encoder.drop_path=0.3", *sys.argv[3:], images=7)
torch.save(weights, sys.argv[2])
"""


def in_a_process(folder: Path, name: str, *overrides: str, **environment: str) -> str:
    """A round in a process of its own; what it logged."""
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join(str(path) for path in (tests.parent, tests / "support", Path(__file__).parent))
    command = [sys.executable, "-c", ROUND, str(folder / "cache"), str(folder / name), *overrides]
    own = {"PYTHONPATH": paths, "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), **environment}
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of a plain round."""
    place = tmp_path_factory.mktemp("compiled")
    torch.save(trained(place / "cache", "encoder.drop_path=0.3", images=7)[1], place / "plain")
    return place


@pytest.mark.slow
def test_a_compiled_round_is_the_plain_one_and_the_same_bytes_twice(place: Path) -> None:
    assert not in_a_process(place, "once", "run.compile=true")
    in_a_process(place, "twice", "run.compile=true")
    plain, once, twice = (torch.load(place / name) for name in ("plain", "once", "twice"))
    close(plain, once)
    assert all(torch.equal(once[name], twice[name]) for name in once)


@pytest.mark.slow
def test_without_a_compiler_the_round_is_the_plain_one(place: Path) -> None:
    said = in_a_process(place, "without", "run.compile=true", CXX="/nonexistent/c++")
    assert said.count("torch.compile does not work here") == 1
    plain, without = (torch.load(place / name) for name in ("plain", "without"))
    assert all(torch.equal(plain[name], without[name]) for name in plain)
