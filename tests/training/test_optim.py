"""AdamW's groups, the schedules' values, moments that go on, clipping by tensor."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from sscxr.models.classifier import Classifier
from sscxr.models.encoder import build
from sscxr.training import optim
from sscxr.training.optim import Schedule

SCHEDULE = Schedule(lr=1.0, min_lr=0.1, warmup=0.1, weight_decay=0.04, weight_decay_end=0.4)


@pytest.mark.parametrize(
    ("progress", "lr"),
    [
        *(
            (0.0, 0.0),
            (0.025, 0.25),
            (0.05, 0.5),
            (0.1, 1.0),
            (0.55, 0.55),
            (1.0, 0.1),
            (-1.0, 0.0),
            (2.0, 0.1),
        ),
        (0.325, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))),
    ],
)
def test_the_rate_rises_linearly_and_falls_by_a_cosine(progress: float, lr: float) -> None:
    assert SCHEDULE.at(progress)[0] == pytest.approx(lr)


@pytest.mark.parametrize(("progress", "decay"), [(0.0, 0.04), (0.5, 0.22), (1.0, 0.4)])
def test_the_decay_rises_by_a_cosine(progress: float, decay: float) -> None:
    assert SCHEDULE.at(progress)[1] == pytest.approx(decay)


def test_the_rate_is_continuous_and_peaks_at_the_end_of_the_warm_up() -> None:
    rates = [SCHEDULE.at(step / 1000)[0] for step in range(1001)]
    assert max(rates) == rates[100] == 1.0
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) <= 0.0101


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_no_warm_up_and_nothing_but_warm_up(warmup: float) -> None:
    schedule = Schedule(lr=1.0, min_lr=0.1, warmup=warmup, weight_decay=0.0, weight_decay_end=0.0)
    assert schedule.at(1.0)[0] == pytest.approx(0.1 if warmup == 0 else 1.0)
    assert schedule.at(0.0)[0] == pytest.approx(1.0 if warmup == 0 else 0.0)


def test_weights_decay_biases_and_norms_do_not() -> None:
    encoder = build("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1)
    optimiser = optim.adamw(encoder, lr=1.0, betas=(0.9, 0.999))
    optim.set_rates(optimiser, 0.25, 0.4)
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in encoder.named_parameters()}
    assert {name for name, value in found.items() if value == 0.4} == {
        *("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
        *("blocks.0.attn.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"),
    }
    assert set(found.values()) == {0.0, 0.4}
    assert {group["lr"] for group in optimiser.param_groups} == {0.25}


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    optimiser = optim.adamw(model, lr=1.0, betas=(0.9, 0.999))
    assert [p for group in optimiser.param_groups for p in group["params"]] == [model.bias]


# ---- moments


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 2))


def step(net: nn.Module, optimiser: torch.optim.Optimizer, number: int) -> None:
    inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(number))
    net(inputs).square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()


def adamw(net: nn.Module) -> torch.optim.AdamW:
    optimiser = optim.adamw(net, lr=0.01, betas=(0.9, 0.99))
    optim.set_rates(optimiser, 0.01, 0.1)
    return optimiser


def test_training_goes_on_from_saved_moments_bit_for_bit() -> None:
    whole, cut = model(), model()
    one, other = adamw(whole), adamw(cut)
    for number in range(6):
        step(whole, one, number)
    for number in range(3):
        step(cut, other, number)
    kept, weights = optim.moments(other, cut), {k: v.clone() for k, v in cut.state_dict().items()}
    fresh = model()
    fresh.load_state_dict(weights)
    resumed = adamw(fresh)
    optim.restore_moments(resumed, fresh, kept)
    for number in range(3, 6):
        step(fresh, resumed, number)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name
    assert all(torch.equal(optim.moments(resumed, fresh)[k], v) for k, v in optim.moments(one, whole).items())


def test_moments_are_named_by_parameter_and_are_copies() -> None:
    net = model()
    optimiser = adamw(net)
    assert optim.moments(optimiser, net) == {}
    step(net, optimiser, 0)
    kept = optim.moments(optimiser, net)
    assert kept.keys() == {
        f"{moment}.{name}"
        for moment in ("exp_avg", "exp_avg_sq", "step")
        for name in ("0.weight", "0.bias", "2.weight", "2.bias")
    }
    before = {name: tensor.clone() for name, tensor in kept.items()}
    step(net, optimiser, 1)
    assert all(torch.equal(kept[name], before[name]) for name in kept)


def test_a_parameter_without_all_its_moments_starts_anew() -> None:
    net = model()
    optimiser = adamw(net)
    step(net, optimiser, 0)
    kept = optim.moments(optimiser, net)
    del kept["step.0.bias"]
    fresh = adamw(net)
    optim.restore_moments(fresh, net, kept)
    assert "0.bias" not in {name.split(".", 1)[1] for name in optim.moments(fresh, net)}
    assert "exp_avg.0.weight" in optim.moments(fresh, net)


def test_moments_of_another_shape_are_refused() -> None:
    net = model()
    optimiser = adamw(net)
    step(net, optimiser, 0)
    kept = optim.moments(optimiser, net)
    kept["exp_avg_sq.2.weight"] = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"moments of 2\.weight"):
        optim.restore_moments(adamw(net), net, kept)


# ---- clipping


def gradients(*norms: float) -> list[nn.Parameter]:
    parameters = []
    for norm in norms:
        parameter = nn.Parameter(torch.zeros(3, 2))
        parameter.grad = torch.full((3, 2), norm / math.sqrt(6))
        parameters.append(parameter)
    return parameters


def test_each_tensor_is_clipped_by_its_own_norm() -> None:
    parameters = gradients(0.5, 3.0, 300.0, 0.0)
    before = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    optim.clip([*parameters, nn.Parameter(torch.zeros(2))], 3.0, per_tensor=True)
    after: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert torch.equal(after[0], before[0]), "below the bound nothing changes"
    assert torch.equal(after[3], before[3])
    assert [float(grad.norm()) for grad in after] == pytest.approx([0.5, 3.0, 3.0, 0.0], rel=1e-5)
    torch.testing.assert_close(after[2] / after[2].norm(), before[2] / before[2].norm())


def test_nothing_to_clip_is_no_error() -> None:
    untouched = nn.Parameter(torch.ones(2))
    optim.clip([untouched], 3.0, per_tensor=True)
    optim.clip([], 3.0, per_tensor=True)
    assert untouched.grad is None
    assert torch.equal(untouched, torch.ones(2))


# ---- rates by layer


def layered(depth: int = 3) -> tuple[nn.Module, torch.optim.AdamW, dict[str, tuple[float, float]]]:
    """A classifier's optimiser at rate 1 and decay 0.1, and (rate, decay) by parameter."""
    model = Classifier(
        build("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=depth), labels=2, pool="mean"
    )
    optimiser = optim.layered_adamw(model, lr=1.0, betas=(0.9, 0.999), layer_decay=0.5)
    optim.set_rates(optimiser, 1.0, 0.1)
    by_id = {id(p): (g["lr"], g["weight_decay"]) for g in optimiser.param_groups for p in g["params"]}
    return model, optimiser, {name: by_id[id(p)] for name, p in model.named_parameters()}


def test_the_rate_falls_from_the_head_to_the_embeddings() -> None:
    model, optimiser, found = layered()
    assert sum(len(g["params"]) for g in optimiser.param_groups) == len(list(model.parameters()))
    for name in ("head.weight", "head.bias", "encoder.norm.weight"):
        assert found[name][0] == 1.0
    for block, rate in enumerate((1 / 8, 1 / 4, 1 / 2)):
        rates = {value[0] for name, value in found.items() if name.startswith(f"encoder.blocks.{block}.")}
        assert rates == {rate}
    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token"):
        assert found[f"encoder.{name}"][0] == 1 / 16


def test_in_fine_tuning_embeddings_of_place_and_class_do_not_decay() -> None:
    model, _, found = layered()
    sizes = dict(model.named_parameters())
    decaying = {name for name, (_, decay) in found.items() if decay}
    assert {found[name][1] for name in decaying} == {0.1}
    assert {"head.weight", "encoder.patch_embed.proj.weight", "encoder.blocks.1.mlp.fc1.weight"} <= decaying
    assert not decaying & {"encoder.pos_embed", "encoder.cls_token"}
    assert all(sizes[name].ndim >= 2 for name in decaying)


def test_a_frozen_encoder_is_not_in_the_optimiser() -> None:
    model = layered()[0]
    model.encoder.requires_grad_(False)
    optimiser = optim.layered_adamw(model, lr=1.0, betas=(0.9, 0.999), layer_decay=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for g in optimiser.param_groups for p in g["params"]} == {"head.weight", "head.bias"}


def test_without_layer_decay_every_layer_learns_alike() -> None:
    model = layered()[0]
    optimiser = optim.layered_adamw(model, lr=1.0, betas=(0.9, 0.999), layer_decay=1.0)
    optim.set_rates(optimiser, 0.25, 0.1)
    assert {group["lr"] for group in optimiser.param_groups} == {0.25}
