"""The training loop: the schedule over rounds, what a stretch reports, and loud stops."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from sscxr.training import loop, optim
from sscxr.training.loop import NonFiniteLossError, OutOfTimeError, Stretch, Trained, train
from sscxr.training.optim import Schedule

CONSTANT = Schedule(lr=0.1, min_lr=0.1, warmup=0.0, weight_decay=0.0, weight_decay_end=0.0)
Batch = tuple[Tensor, list[int]]


class Recorder(torch.optim.SGD):
    """SGD that notes the rate and the decay of each step."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__([{"params": list(net.parameters()), "decays": True}], lr=0.0)
        self.seen: list[tuple[float, float]] = []
        self.norms: list[list[float]] = []

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        self.seen.append((group["lr"], group["weight_decay"]))
        self.norms.append([float(p.grad.norm()) for p in group["params"] if p.grad is not None])
        super().step()


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def batches(count: int, size: int = 4) -> Iterator[Batch]:
    for number in range(count):
        inputs = torch.randn(size, 3, generator=torch.Generator().manual_seed(number))
        yield inputs, [100 * number + image for image in range(size)]


def run(
    count: int,
    *,
    net: nn.Linear | None = None,
    optimiser: torch.optim.Optimizer | None = None,
    scale: dict[int, float] | None = None,
    begin: float = 0.0,
    end: float = 1.0,
    schedule: Schedule = CONSTANT,
    clip: float = 1e9,
    per_tensor: bool = True,
    **settings: object,
) -> Trained:
    net = net or linear()
    steps = iter(range(count))

    def loss_of(inputs: Tensor) -> Tensor:
        return net(inputs).square().mean() * (scale or {}).get(next(steps), 1.0)

    return train(
        net,
        optimiser or Recorder(net),
        batches(count),
        loss_of,
        stretch=Stretch(count, begin, end),
        schedule=schedule,
        clip=clip,
        per_tensor=per_tensor,
        **settings,  # type: ignore[arg-type]
    )


def test_the_schedule_advances_within_rounds() -> None:
    """Two rounds of five steps meet the very rates of one stretch of ten, warm-up among them."""
    schedule = Schedule(lr=1.0, min_lr=0.0, warmup=0.4, weight_decay=0.0, weight_decay_end=1.0)
    net = linear()
    whole, first, second = Recorder(net), Recorder(net), Recorder(net)
    run(10, optimiser=whole, schedule=schedule)
    run(5, optimiser=first, schedule=schedule, end=0.5)
    run(5, optimiser=second, schedule=schedule, begin=0.5)
    torch.testing.assert_close(torch.tensor(first.seen + second.seen), torch.tensor(whole.seen))
    rates = [lr for lr, _ in whole.seen]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[-1] == pytest.approx(0.0)


def test_a_stretch_ends_where_the_next_begins() -> None:
    assert Stretch(5, 0.2, 0.4).progress(4) == pytest.approx(0.4)
    assert Stretch(5, 0.2, 0.4).progress(0) == pytest.approx(0.24)


@pytest.mark.parametrize("count", [1, 19, 20, 21, 45])
def test_every_step_counts_once(count: int) -> None:
    net, seen = linear(), []
    trained = run(count, net=net, on_step=lambda *done: seen.append(done))
    assert (trained.steps, trained.images) == (count, 4 * count)
    assert [done[:2] for done in seen] == [(step + 1, 4 * step + 4) for step in range(count)]
    assert math.isfinite(seen[-1][2])
    assert trained.seconds >= 0


def test_the_loss_is_the_mean_over_the_steps() -> None:
    net = linear()
    frozen = Schedule(lr=0.0, min_lr=0.0, warmup=0.0, weight_decay=0.0, weight_decay_end=0.0)
    expected = [net(inputs).square().mean().item() for inputs, _ in batches(23)]
    assert run(23, net=net, schedule=frozen).loss == pytest.approx(sum(expected) / 23, rel=1e-5)


def test_training_lowers_the_loss() -> None:
    net = linear()
    first, second = run(20, net=net), run(20, net=net)
    assert second.loss < first.loss / 2


def test_clipping_by_tensor_and_by_the_whole() -> None:
    by_tensor, by_whole = Recorder(net := linear()), Recorder(other := linear())
    run(3, net=net, optimiser=by_tensor, clip=1e-3, per_tensor=True)
    run(3, net=other, optimiser=by_whole, clip=1e-3, per_tensor=False)
    for weight, bias in by_tensor.norms:
        assert [weight, bias] == pytest.approx([1e-3, 1e-3], rel=1e-2)
    for norms in by_whole.norms:
        assert math.hypot(*norms) == pytest.approx(1e-3, rel=1e-2)


def test_gradients_do_not_add_up_over_steps() -> None:
    net = linear()
    run(2, net=net)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_model_is_left_in_training_mode() -> None:
    net = linear().eval()
    run(1, net=net)
    assert net.training


# ---- loud stops


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("count", "bad"), [(5, 2), (5, 4), (1, 0), (50, 0), (50, 33)])
def test_a_loss_that_is_not_finite_names_its_step_and_its_images(value: float, count: int, bad: int) -> None:
    seen: list[int] = []
    with pytest.raises(NonFiniteLossError) as error:
        run(count, scale={bad: value}, on_step=lambda step, *rest: seen.append(step))
    rows = ", ".join(str(100 * bad + image) for image in range(4))
    assert f"at step {bad} of this round" in str(error.value)
    assert f"cache row: {rows}." in str(error.value)
    assert len(seen) < bad + loop._CHECK_EVERY, "the stop comes at the next look"


@pytest.mark.parametrize("count", [1, 21])
def test_weights_that_the_last_step_made_nan_are_no_result(count: int) -> None:
    net, steps = linear(), iter(range(count))

    def loss_of(inputs: Tensor) -> Tensor:
        loss = net(inputs).square().mean()
        last = next(steps) == count - 1
        return loss + (0 * net.weight).sum().sqrt() if last else loss  # 0 more, of a gradient that is NaN

    with pytest.raises(NonFiniteLossError, match=f"weights that are not finite after step {count - 1} "):
        train(
            net, Recorder(net), batches(count), loss_of,
            stretch=Stretch(count, 0.0, 1.0), schedule=CONSTANT, clip=1.0, per_tensor=False,
        )  # fmt: skip


@pytest.mark.parametrize("count", [1, 20, 30])
def test_the_budget_ends_the_training_with_an_error(count: int) -> None:
    with pytest.raises(OutOfTimeError, match=f"^1 of {count} steps"):
        run(count, budget=-1.0)


def test_within_the_budget_nothing_happens() -> None:
    assert run(30, budget=3600.0).steps == 30


def test_adamw_of_ours_fits_the_loop() -> None:
    net = linear()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    run(2, net=net, optimiser=optim.adamw(net, lr=0.1, betas=(0.9, 0.999)))
    assert not any(torch.equal(net.state_dict()[name], before[name]) for name in before)
