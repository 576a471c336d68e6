"""MAE: what the encoder sees, what the loss counts, and how patches and images correspond."""

from typing import Any

import pytest
import torch
from ops import count_ops
from torch import Tensor, nn

from sscxr import config as configs
from sscxr import stages
from sscxr.config import ConfigError
from sscxr.objectives import mae
from sscxr.objectives.mae import MAE, sines
from sscxr.stages.pretrain import build_objective

SMALL = ("pretrain.objective=mae", "encoder.drop_path=0")  # 64 px in 8-px patches


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 1, 64, 64, generator=generator(9))


def method(*settings: str) -> MAE:
    found = build_objective(configs.load("smoke", [*SMALL, *settings]))
    assert isinstance(found, MAE)
    return found.eval()


# ---- masks


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 16), (0.9, 6), (0.95, 3)])
def test_each_image_shows_exactly_its_share(ratio: float, visible: int) -> None:
    model = method(f"mae.mask_ratio={ratio}")
    seen, hidden = model.draw(50, generator())
    assert seen.shape == (50, visible)
    both = torch.cat([seen, hidden], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(64).expand(50, -1))
    assert len({tuple(row.tolist()) for row in seen}) == 50, "each image has a mask of its own"


def test_every_patch_is_hidden_as_often_as_any_other() -> None:
    model = method()
    seen, _ = model.draw(4000, generator())
    share = torch.bincount(seen.flatten(), minlength=64) / 4000
    assert bool(((share - 0.25).abs() < 0.04).all())  # 0.04: nearly six standard errors


# ---- what is seen


def test_the_encoder_runs_on_visible_tokens_alone() -> None:
    model, lengths = method("mae.mask_ratio=0.9"), []
    block: Any = model.encoder.blocks[0]  # type: ignore[index]
    block.register_forward_hook(lambda module, given, out: lengths.append(out.shape[1]))
    model([images()], generator(), 0.5)
    assert lengths == [6 + 1]


def test_hidden_content_changes_nothing_that_is_predicted() -> None:
    model, clean = method(), images()
    visible, masked = model.draw(len(clean), generator())
    patches = model.patchify(clean)
    noise = torch.randn(patches.shape, generator=generator(1))
    changed = model.unpatchify(patches.scatter(1, masked.unsqueeze(-1).expand(-1, -1, 64), noise))
    assert not torch.equal(changed, clean)
    with torch.no_grad():
        assert torch.equal(model.predict(clean, visible, masked), model.predict(changed, visible, masked))


def test_what_is_visible_changes_every_prediction() -> None:
    model, clean = method(), images(2)
    visible, masked = model.draw(2, generator())
    other = clean.clone()
    other[0] = images(3)[2]
    with torch.no_grad():
        before, after = model.predict(clean, visible, masked), model.predict(other, visible, masked)
    assert bool((before[0] != after[0]).any(dim=1).all())
    assert torch.equal(before[1], after[1])


# ---- the loss


@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_counts_masked_patches_alone(monkeypatch: pytest.MonkeyPatch, normalised: bool) -> None:
    model, clean = method(f"mae.normalised={normalised}"), images()

    def right_where_masked(given: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        wrong = torch.full((*visible.shape, 64), 100.0)
        return model.target(given).scatter(1, visible.unsqueeze(-1).expand(-1, -1, 64), wrong)

    monkeypatch.setattr(model, "predict", right_where_masked)
    assert model([clean], generator(), 0.5) == 0
    monkeypatch.setattr(model, "predict", lambda given, visible, masked: model.target(given) + 2.0)
    assert model([clean], generator(), 0.5).item() == pytest.approx(4.0)


def test_normalised_pixels_have_mean_0_and_deviation_1() -> None:
    found = method("mae.normalised=true").target(images() * 7 + 3)
    torch.testing.assert_close(found.mean(-1), torch.zeros(4, 64), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(-1), torch.ones(4, 64), atol=1e-4, rtol=0)
    assert torch.equal(method("mae.normalised=false").target(images()), method().patchify(images()))


def test_a_flat_patch_is_no_division_by_zero() -> None:
    model = method("mae.normalised=true")
    assert model([torch.zeros(4, 1, 64, 64)], generator(), 0.5).isfinite()


def test_the_order_of_the_images_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = method(), images()
    visible, masked = model.draw(4, generator())
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        found = model.predict(clean, visible, masked)[order]
        torch.testing.assert_close(model.predict(clean[order], visible[order], masked[order]), found)


def test_bf16_agrees_to_rounding() -> None:
    model, clean = method(), images()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model([clean], generator(), 0.5)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, model([clean], generator(), 0.5), rtol=0.02, atol=0.0)


def test_no_loop_over_images() -> None:
    model = method()
    few, many = (torch.randn(count, 1, 64, 64) for count in (4, 64))
    assert count_ops(lambda: model([few], generator(), 0.5)) == count_ops(
        lambda: model([many], generator(), 0.5)
    )


def test_a_few_steps_lower_the_loss_and_reach_every_weight() -> None:
    model = method("mae.normalised=false").train()
    ramp = torch.linspace(-1, 1, 64).expand(8, 1, 64, 64) * torch.linspace(0.5, 1, 8).view(-1, 1, 1, 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(20):
        loss = model([ramp], generator(step), 0.5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


# ---- images and patches


def test_patches_and_images_are_each_other_s_inverse() -> None:
    model, clean = method(), images()
    patches = model.patchify(clean)
    assert torch.equal(model.unpatchify(patches), clean)
    # The encoder's own order of patches, row by row.
    expected = nn.functional.unfold(clean, 8, stride=8).transpose(1, 2)
    assert torch.equal(patches, expected)


@pytest.mark.parametrize("normalised", [True, False])
def test_pictures_keep_what_is_visible(normalised: bool) -> None:
    model, clean = method(f"mae.normalised={normalised}"), images()
    with torch.no_grad():
        corrupted, made = model.pictures(clean, generator())
    visible, masked = model.draw(len(clean), generator())
    before, hidden, after = (model.patchify(some) for some in (clean, corrupted, made))
    assert torch.equal(mae._at(after, visible), mae._at(before, visible))
    assert bool((mae._at(hidden, masked) == 0).all())
    assert not torch.equal(mae._at(after, masked), mae._at(before, masked))


def test_positions_are_all_different_and_of_one_length() -> None:
    (found,) = sines(8, 64)
    assert found.shape == (64, 64)
    assert len(torch.unique(found, dim=0)) == 64
    torch.testing.assert_close(found.square().sum(dim=1), torch.full((64,), 32.0))


# ---- settings


@pytest.mark.parametrize("setting", ["mae.mask_ratio=1", "mae.decoder_width=40", "mae.decoder_depth=0"])
def test_settings_that_cannot_be_used_are_named(setting: str) -> None:
    with pytest.raises(ConfigError) as error:
        stages.load_config("smoke", [*SMALL, setting])
    assert setting.partition("=")[0] in str(error.value)


def test_a_setting_of_another_method_is_not_looked_at() -> None:
    stages.load_config("smoke", [*SMALL, "gmml.align=7"])
