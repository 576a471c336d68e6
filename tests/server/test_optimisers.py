"""The server's rules against their definitions, and from a checkpoint."""

import pytest
import torch
from torch import Tensor

from server.aggregate import WeightedSum
from server.optimisers import FedAdam, FedAvg, Nesterov, ServerOptimiser, server_optimiser
from sscxr import config as configs
from sscxr import stages

LIKE = {"a": torch.zeros(7, 5), "b": torch.zeros(3)}
GRADIENTS = ["federation.sends=gradients", "federation.server.name=adamw", "federation.share_head=true"]


def update(seed: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(like.shape, generator=source) * 0.1 for name, like in LIKE.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_fedavg_of_zero_updates_is_the_identity() -> None:
    encoder = update(9)
    zeros = {name: torch.zeros_like(like) for name, like in LIKE.items()}
    assert same(FedAvg(1.0).step(encoder, zeros, 0.5), encoder)


def test_fedavg_of_one_step_on_a_linear_model_is_one_step_on_the_union() -> None:
    """The weighted mean of one full-batch SGD step at each site, for squared error."""
    source = torch.Generator().manual_seed(0)
    start = {"weight": torch.randn(2, 6, generator=source), "bias": torch.randn(2, generator=source)}
    sites = [
        (torch.randn(count, 6, generator=source), torch.randn(count, 2, generator=source))
        for count in (3, 20, 11)
    ]

    def step(inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
        predicted = inputs @ leaves["weight"].T + leaves["bias"]
        (predicted - targets).square().sum(dim=1).mean().backward()  # type: ignore[no-untyped-call]
        return {name: -0.1 * leaf.grad for name, leaf in leaves.items()}  # type: ignore[operator]

    total = WeightedSum(start)
    for inputs, targets in sites:
        total.add(step(inputs, targets), len(inputs))
    federated = FedAvg(1.0).step(start, total.mean(), 0.5)
    union = step(torch.cat([inputs for inputs, _ in sites]), torch.cat([targets for _, targets in sites]))
    for name in start:
        torch.testing.assert_close(federated[name], start[name] + union[name], rtol=1e-5, atol=1e-6)


def test_a_step_leaves_the_encoder_that_it_was_given() -> None:
    for optimiser in (FedAvg(0.5), Nesterov(0.7, 0.9)):
        encoder = update(9)
        assert not same(optimiser.step(encoder, update(1), 0.5), encoder)
        assert same(encoder, update(9))


def test_nesterov_without_momentum_is_fedavg() -> None:
    one: ServerOptimiser = Nesterov(0.5, 0.0)
    encoder, other = update(9), update(9)
    for seed in range(3):
        encoder = one.step(encoder, update(seed), 0.5)
        other = FedAvg(0.5).step(other, update(seed), 0.5)
    assert same(encoder, other)


def test_nesterov_is_torch_sgd_on_the_negative_mean() -> None:
    parameter = torch.nn.Parameter(update(9)["a"])
    reference = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    optimiser, encoder = Nesterov(0.7, 0.9), {"a": update(9)["a"]}
    for seed in range(4):
        mean = {"a": update(seed)["a"]}
        encoder = optimiser.step(encoder, mean, 0.5)
        parameter.grad = -mean["a"]
        reference.step()
        torch.testing.assert_close(encoder["a"], parameter.detach())


def test_fedadam_by_hand() -> None:
    encoder, total = {"a": torch.zeros(1)}, torch.zeros(1)
    rule, first, second = FedAdam(0.1, 0.9), 0.0, 1e-6
    for mean in (0.5, -0.25, 1.0):
        encoder = rule.step(encoder, {"a": torch.tensor([mean])}, 0.5)
        first, second = 0.9 * first + 0.1 * mean, 0.99 * second + 0.01 * mean**2
        total += 0.1 * first / (second**0.5 + 1e-3)
    torch.testing.assert_close(encoder["a"], total)


def test_joint_adamw_is_torch_adamw_on_the_mean_gradient_by_the_runs_schedule() -> None:
    """The tensor without a gradient does not decay; nor do those of one dimension."""
    config = configs.load("smoke", [*GRADIENTS, "pretrain.weight_decay=0.5", "pretrain.clip=0.1"])
    start = {"a": update(9)["a"], "b": update(9)["b"], "unused": torch.ones(2, 2)}
    weights = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    rule, encoder = server_optimiser(config), start
    settings = config.pretrain
    groups = [{"params": [weights["a"], weights["unused"]]}, {"params": [weights["b"]]}]
    reference = torch.optim.AdamW(groups, betas=(settings.betas[0], settings.betas[1]))
    for number in range(4):
        progress = (number + 1) / 4
        mean = update(number) | {"unused": torch.zeros(2, 2)}
        encoder = rule.step(encoder, mean, progress)
        lr, decay = stages.of(config).schedule().at(progress)
        for name in ("a", "b"):
            weights[name].grad = mean[name] * min(1.0, 0.1 / (float(mean[name].norm()) + 1e-6))
        for group, rate in zip(reference.param_groups, (decay, 0.0), strict=True):
            group["lr"], group["weight_decay"] = lr, rate
        reference.step()
        for name, weight in weights.items():
            torch.testing.assert_close(encoder[name], weight.detach())
    assert torch.equal(encoder["unused"], start["unused"])


@pytest.mark.parametrize("name", ["nesterov", "fedadam", "adamw"])
def test_a_rule_goes_on_alike_from_its_state(name: str) -> None:
    changes = [
        f"federation.server.name={name}",
        "federation.server.momentum=0.9",
        "federation.server.lr=0.01",
    ]
    config = configs.load("smoke", [*(GRADIENTS if name == "adamw" else []), *changes])
    whole, encoder = server_optimiser(config), update(9)
    for seed in range(4):
        encoder = whole.step(encoder, update(seed), (seed + 1) / 4)
        if seed == 1:
            kept = {part: encoder[part].clone() for part in sorted(encoder, reverse=True)}
            state = {part: tensor.clone() for part, tensor in whole.state().items()}
    resumed = server_optimiser(config)
    resumed.load(state)
    for seed in (2, 3):
        kept = resumed.step(kept, update(seed), (seed + 1) / 4)
    assert same(kept, encoder)
