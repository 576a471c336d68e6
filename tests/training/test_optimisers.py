"""AdamW at two time scales and Muon: against their definitions, and from saved moments."""

import pytest
import torch
from torch import nn

from sscxr import config as configs
from sscxr.training import optim, optimisers


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def step(net: nn.Module, optimiser: torch.optim.Optimizer, number: int) -> None:
    source = torch.Generator().manual_seed(number)
    net(torch.randn(8, 6, generator=source)).square().mean().backward()
    optim.set_rates(optimiser, 0.01, 0.1)
    optimiser.step()
    optimiser.zero_grad()


def built(net: nn.Module, kind: str) -> torch.optim.Optimizer:
    return optimisers.build(net, configs.load("smoke", [f"pretrain.optimiser={kind}"]).pretrain)


def test_two_scales_by_hand() -> None:
    net = nn.Linear(1, 1, bias=False)
    optimiser = built(net, "mt-adamw")
    weight, fast, slow, second = float(net.weight), 0.0, 0.0, 0.0
    for number, gradient in enumerate((0.5, -0.2, 0.1), 1):
        net.weight.grad = torch.tensor([[gradient]])
        optim.set_rates(optimiser, 0.01, 0.1)
        optimiser.step()
        fast, slow = 0.9 * fast + 0.1 * gradient, 0.999 * slow + 0.001 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        towards = 0.5 * fast / (1 - 0.9**number) + 0.5 * slow / (1 - 0.999**number)
        weight -= 0.01 * 0.1 * weight
        weight -= 0.01 * towards / ((second / (1 - 0.999**number)) ** 0.5 + 1e-8)
        assert float(net.weight) == pytest.approx(weight, rel=1e-5)


def test_muon_moves_matrices_by_orthogonal_steps_and_all_else_by_adamw() -> None:
    one, other = network(), network()
    before = {name: tensor.detach().clone() for name, tensor in one.named_parameters()}
    step(one, built(one, "muon"), 0)
    step(other, optim.adamw(other, lr=0.01, betas=(0.9, 0.999)), 0)
    for (name, weight), twin in zip(one.named_parameters(), other.parameters(), strict=True):
        if weight.ndim < 2:
            assert torch.equal(weight, twin)
            continue
        moved = weight + 0.01 * 0.1 * before[name] - before[name]
        values = torch.linalg.svdvals(moved.detach()) / (0.01 * 0.2 * max(weight.shape) ** 0.5)
        # Five of Muon's iterations bring singular values, down to a hundredth of the largest, to about one.
        assert 0.6 < values[0] < 1.3
        assert values[1] > 0.6


@pytest.mark.parametrize("kind", ["adamw", "mt-adamw", "muon"])
def test_training_goes_on_from_saved_moments_bit_for_bit(kind: str) -> None:
    whole = network()
    optimiser = built(whole, kind)
    for number in range(2):
        step(whole, optimiser, number)
    resumed = network()
    resumed.load_state_dict(whole.state_dict())
    again = built(resumed, kind)
    optim.restore_moments(again, resumed, optim.moments(optimiser, whole))
    for number in (2, 3):
        step(whole, optimiser, number)
        step(resumed, again, number)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
