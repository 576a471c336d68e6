"""DINO: what the loss compares, what keeps it from collapsing, how the teacher moves, what stays at the site."""

import math
from typing import Any

import pytest
import torch
from ops import count_ops
from torch import Tensor

from sscxr import config as configs
from sscxr import stages
from sscxr.config import ConfigError
from sscxr.models.encoder import EncoderError
from sscxr.objectives import dino
from sscxr.objectives.dino import DINO, cross_entropy
from sscxr.objectives.teacher import Teacher, momentum_at
from sscxr.stages.pretrain import build_objective

SMALL = ("pretrain.objective=dino", "encoder.drop_path=0", "encoder.img_size=32", "encoder.patch_size=8")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def method(*settings: str) -> DINO:
    found = build_objective(configs.load("smoke", [*SMALL, *settings]))
    assert isinstance(found, DINO)
    found.begin_round()
    return found.train()


def groups(model: DINO, images: int = 4, seed: int = 0) -> list[Tensor]:
    random = generator(seed)
    return [torch.randn(one.count * images, 1, one.size, one.size, generator=random) for one in model.views]


def permuted(views: list[Tensor], order: Tensor) -> list[Tensor]:
    images = len(order)
    return [view.unflatten(0, (-1, images))[:, order].flatten(0, 1) for view in views]  # type: ignore[no-untyped-call]


# ---- the loss


def test_every_pair_of_different_views_counts_once() -> None:
    random = generator()
    target = torch.rand(2, 3, 5, generator=random).softmax(-1)
    student = torch.rand(4, 3, 5, generator=random).log_softmax(-1)
    pairs = [(t, v) for t in range(2) for v in range(4) if t != v]
    by_hand = [-(target[t] * student[v]).sum(-1).mean() for t, v in pairs]
    torch.testing.assert_close(cross_entropy(target, student), torch.stack(by_hand).mean())


def test_a_spread_solution_is_better_than_a_collapsed_one() -> None:
    """Once centred, equal logits for all images give a uniform target: the worst for a student that agrees."""
    model = method("dino.teacher_temperature=[0.04,0.04]")
    count = model.given.prototypes
    collapsed = torch.zeros(2 * 8, count)
    collapsed[:, 3] = 1.0
    model.centre.copy_(collapsed[0])
    target = model._targets(collapsed, 1.0)
    torch.testing.assert_close(target, torch.full_like(target, 1 / count))
    worst = cross_entropy(target.view(2, 8, -1), target.log().view(2, 8, -1))
    assert worst.item() == pytest.approx(math.log(count), rel=1e-5)

    spread = torch.eye(count)[torch.arange(8) % count].repeat(2, 1)
    model.centre.copy_(spread.mean(dim=0))
    target = model._targets(spread, 1.0)
    agreeing = (spread / model.given.student_temperature).log_softmax(-1)
    assert cross_entropy(target.view(2, 8, -1), agreeing.view(2, 8, -1)) < 0.1 * worst


def test_the_order_of_the_images_does_not_matter() -> None:
    model = method()
    views = groups(model)
    loss = model(views, generator(), 0.5)
    other = model(permuted(views, torch.tensor([2, 0, 3, 1])), generator(), 0.5)
    torch.testing.assert_close(loss, other)


def test_parts_add_up() -> None:
    model = method()
    views = groups(model, images=5)
    whole = model(views, generator(), 0.5)
    (mean, _), *_ = model._seen
    model._seen.clear()
    parts = torch.stack(list(model.parts(views, generator(), 0.5, 3)))
    assert len(parts) == 3
    torch.testing.assert_close(parts.sum(), whole)
    before = model.centre.clone()
    model.after_step(0.5)  # moves the centre as the whole batch would
    torch.testing.assert_close(model.centre, before.lerp(mean, 1 - model.given.centre_momentum))


def test_bf16_agrees_to_rounding() -> None:
    model = method()
    views = groups(model)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(views, generator(), 0.5)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, model(views, generator(), 0.5), rtol=0.02, atol=0.0)


def test_no_loop_over_images() -> None:
    model = method()
    few, many = (groups(model, images) for images in (4, 32))
    assert count_ops(lambda: model(few, generator(), 0.5)) == count_ops(lambda: model(many, generator(), 0.5))


@pytest.mark.slow
def test_a_few_steps_approach_a_teacher_that_stays_and_reach_every_trained_weight() -> None:
    model = method("dino.momentum=1", "dino.centre_momentum=1", "dino.teacher_temperature=[0.07,0.07]")
    views = groups(model, images=8)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(20):
        loss = model(views, generator(), 0.5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.after_step(0.5)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == trained
    assert not any(name.startswith("teacher.") for name in trained)


def test_prototypes_are_frozen_at_first() -> None:
    model = method("dino.freeze_prototypes=0.1")
    for progress, learns in ((0.05, False), (0.1, True)):
        model.zero_grad()
        model(groups(model), generator(), progress).backward()
        gradient: Any = model.head.prototypes.grad
        assert (gradient is not None) is learns


def test_the_target_grows_softer_through_the_warm_up() -> None:
    model = method("dino.teacher_temperature=[0.04,0.07]", "dino.temperature_warmup=0.2")
    logits = torch.rand(4, model.given.prototypes, generator=generator())
    for progress, temperature in ((0.0, 0.04), (0.1, 0.055), (0.2, 0.07), (1.0, 0.07)):
        torch.testing.assert_close(model._targets(logits, progress), (logits / temperature).softmax(-1))


# ---- teacher and centre


def test_a_teacher_after_n_steps_is_the_closed_form_of_its_average() -> None:
    student = torch.nn.Linear(3, 2)
    teacher = Teacher(student)
    begun = teacher.copies[0].weight.clone()  # type: ignore[operator, union-attr]
    with torch.no_grad():
        student.weight += 1.0
    for _ in range(7):
        teacher.follow(student, momentum=0.9)
    expected = 0.9**7 * begun + (1 - 0.9**7) * student.weight
    torch.testing.assert_close(teacher.copies[0].weight, expected)


def test_the_momentum_rises_to_one() -> None:
    found = [momentum_at(progress, 0.996) for progress in (0.0, 0.5, 1.0)]
    assert found == pytest.approx([0.996, 0.998, 1.0])


def test_the_teacher_is_never_in_training() -> None:
    model = method("encoder.drop_path=0.5").train()
    assert model.encoder.training
    assert not any(module.training for module in model.teacher.modules())
    image = torch.randn(2, 1, 32, 32, generator=generator())
    assert torch.equal(model._teacher(image), model._teacher(image))


def test_the_centre_moves_after_a_step_and_not_when_measured() -> None:
    model = method()
    views = groups(model)
    mean = model._teacher(views[0]).mean(dim=0)
    model(views, generator(), 0.5)
    model.after_step(0.5)
    torch.testing.assert_close(model.centre, (1 - model.given.centre_momentum) * mean)
    before = model.centre.clone()
    model.eval()
    model.held_out(views[0], generator())
    assert model._seen == []
    assert torch.equal(model.centre, before)


@pytest.mark.parametrize(("rule", "kept"), [("keep", True), ("reset", False)])
def test_a_new_average_keeps_or_resets_the_teacher(rule: str, kept: bool) -> None:
    first = method()
    with torch.no_grad():
        for parameter in first.teacher.parameters():
            parameter += 1.0
        first.centre += 2.0
    later = build_objective(configs.load("smoke", [*SMALL, f"dino.teacher={rule}"]))
    assert isinstance(later, DINO)
    later.load_private(first.private())
    later.begin_round()
    source = first.teacher if kept else Teacher(later.encoder, later.head)
    wanted = source.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in later.teacher.state_dict().items())
    assert torch.equal(later.centre, first.centre)


def test_a_first_round_begins_at_the_encoder_that_came() -> None:
    """Not at the one that was drawn: the run may start from a checkpoint."""
    model = build_objective(configs.load("smoke", SMALL))
    assert isinstance(model, DINO)
    with torch.no_grad():
        model.encoder.norm.weight.fill_(3.0)  # type: ignore[operator, union-attr]
    model.load_private({})
    model.begin_round()
    assert bool((model.teacher.copies[0].norm.weight == 3.0).all())  # type: ignore[operator, union-attr]


# ---- held out


def test_the_entropy_shows_a_collapse() -> None:
    model = method().eval()
    images = torch.randn(16, 1, 32, 32, generator=generator())
    first, second = model.held_out(images, generator()), model.held_out(images, generator(1))
    assert torch.equal(first.loss, second.loss)
    assert first.score is not None
    assert 0 <= first.score <= 1
    # As if the centre had not followed: every image at one prototype.
    model.centre.zero_()
    model.centre[5] = -10.0
    collapsed = model.held_out(images, generator())
    assert collapsed.score is not None
    assert collapsed.score < 0.01


# ---- settings


def test_views_fit_the_encoder() -> None:
    model = method("dino.local_side=0.1")
    assert [(group.count, group.size) for group in model.views] == [(2, 32), (2, 32)], (
        "at least 4 x 4 patches"
    )
    large = configs.load("default", ["pretrain.objective=dino", "encoder.depth=1"])
    found = build_objective(large)
    assert [(group.count, group.size) for group in found.views] == [(2, 224), (6, 96)]


def test_no_local_views() -> None:
    model = method("dino.local_views=0")
    assert model(groups(model), generator(), 0.5).isfinite()
    model.eval()
    assert model.held_out(torch.randn(4, 1, 32, 32), generator()).loss.isfinite()


@pytest.mark.parametrize(
    "settings",
    [
        ("pretrain.views=2",),
        ("dino.local_views=-1",),
        ("dino.teacher=forget",),
        ("dino.global_area=[0.9,0.5]",),
        ("dino.student_temperature=0",),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        stages.load_config("smoke", [*SMALL, *settings])
    assert settings[0].partition("=")[0] in str(error.value)


def test_an_encoder_without_a_class_token_is_refused() -> None:
    name = "vit_base_patch16_siglip_gap_224"
    with pytest.raises(EncoderError, match="class token") as error:
        build_objective(configs.load("smoke", [*SMALL, f"encoder.name={name}", "encoder.depth=1"]))
    assert name in str(error.value)


def test_the_head_gives_cosines() -> None:
    head = dino.Head(8, 16, 4, 10)
    features = torch.randn(3, 8, generator=generator())
    found = head(features)
    assert found.shape == (3, 10)
    assert bool((found.abs() <= 1 + 1e-6).all())
    with torch.no_grad():
        head.prototypes *= 7
    torch.testing.assert_close(head(features), found)
