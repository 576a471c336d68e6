"""GMML: the sampler's statistics, and what it does to pixels and leaves alone.

The figures are those of the released code (Sara-Ahmed/GMML), measured on 300 to 2,000 draws at 224 px; the
tolerances are about three standard errors of both samples together.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from marks import slow
from ops import count_ops
from torch import Tensor, nn

from sscxr import config
from sscxr.models.encoder import build
from sscxr.objectives import gmml
from sscxr.objectives.base import Views
from sscxr.objectives.gmml import GMML

SIZES = {"img_size": 32, "patch_size": 8, "in_chans": 1}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class Draws:
    """Many masks and the rectangles that made them."""

    coverage: Tensor  # [B], share of the image
    blocks: Tensor  # [B]
    sides: Tensor  # px, of every rectangle stamped
    corrupted: Tensor  # [cells, cells], share of masks that corrupt a cell of `cell` px


@functools.cache
def draw(
    budget: tuple[float, float],
    *,
    size: int = 224,
    align: int = 16,
    max_block: float = 0.3,
    centre_bias: bool = True,
    cell: int = 16,
    count: int = 1500,
) -> Draws:
    random, parts = generator(), []
    rectangles = gmml.rectangles_needed(size=size, align=align, max_block=max_block, budget=budget[1])
    batch, grid = 50, size // align
    for _ in range(count // batch):
        start, end = gmml.draw_rectangles(
            batch,
            rectangles,
            size=size,
            align=align,
            max_block=max_block,
            centre_bias=centre_bias,
            generator=random,
        )
        share = budget[0] + (budget[1] - budget[0]) * torch.rand(batch, generator=random)
        mask, blocks = gmml.cover(start, end, grid=grid, budget=share * grid**2)
        assert (mask.flatten(1).float().mean(dim=1) >= share - 1e-6).all()
        stamped = torch.arange(rectangles) < blocks[:, None]
        parts.append((mask.float(), blocks.float(), ((end - start) * align)[stamped].flatten().float()))
    masks = torch.cat([mask for mask, _, _ in parts])
    cells = nn.functional.avg_pool2d(masks.mean(dim=0)[None], max(1, cell // align))[0]
    return Draws(
        masks.flatten(1).mean(dim=1),
        torch.cat([b for _, b, _ in parts]),
        torch.cat([s for _, _, s in parts]),
        cells,
    )


@pytest.mark.parametrize(
    ("align", "budget", "count", "coverage", "sd", "blocks", "spread"),
    [
        (16, (0.5, 0.75), 1500, 0.641, 0.071, 33.7, (21, 49)),
        slow(1, (0.5, 0.75), 300, 0.636, 0.070, 59.7, (35, 88)),
        (16, (0.3, 0.3), 1500, 0.315, 0.014, 11.8, (8, 16)),
        (16, (0.5, 0.5), 1500, 0.511, 0.012, 22.8, (17, 29)),
    ],
)
def test_published_sampler_has_the_published_statistics(
    align: int,
    budget: tuple[float, float],
    count: int,
    coverage: float,
    sd: float,
    blocks: float,
    spread: tuple[int, int],
) -> None:
    found = draw(budget, align=align, count=count)
    fixed = budget[0] == budget[1]
    assert found.coverage.mean() == pytest.approx(coverage, abs=0.002 if fixed else 0.012)
    assert found.coverage.std() == pytest.approx(sd, abs=0.002 if fixed else 0.006)
    assert found.blocks.mean() == pytest.approx(blocks, rel=0.04)
    low, high = found.blocks.quantile(torch.tensor([0.05, 0.95])).tolist()
    assert low == pytest.approx(spread[0], abs=1 if align > 1 else 3)
    assert high == pytest.approx(spread[1], abs=2 if align > 1 else 6)
    if align == 16:
        shares = [(found.sides == 16 * patches).float().mean().item() for patches in (1, 2, 3, 4)]
        assert shares == pytest.approx([0.16, 0.37, 0.29, 0.18], abs=0.015)
    else:
        assert found.sides.mean() == pytest.approx(30, abs=1)


@pytest.mark.parametrize(
    ("align", "count", "top_left", "bottom_right"), [(16, 1500, 0.17, 0.38), slow(1, 300, 0.07, 0.69)]
)
def test_published_sampler_prefers_the_centre(
    align: int, count: int, top_left: float, bottom_right: float
) -> None:
    found = draw((0.5, 0.75), align=align, count=count).corrupted
    assert found[6:8, 6:8].mean() == pytest.approx(0.74, abs=0.04)
    assert found[0, 0] == pytest.approx(top_left, abs=0.04)
    assert found[-1, -1] == pytest.approx(bottom_right, abs=0.05)


@pytest.mark.parametrize(
    ("size", "align", "max_block", "budget", "count"),
    [
        (224, 16, 0.3, (0.5, 0.75), 1500),
        (224, 16, 0.3, (0.3, 0.3), 1500),
        slow(224, 1, 0.3, (0.5, 0.75), 200),
        (64, 8, 0.4, (0.5, 0.75), 1500),
        (64, 8, 0.4, (0.3, 0.3), 1500),
    ],
)
def test_unbiased_sampler_treats_every_cell_alike(
    size: int, align: int, max_block: float, budget: tuple[float, float], count: int
) -> None:
    found = draw(
        budget,
        size=size,
        align=align,
        max_block=max_block,
        count=count,
        centre_bias=False,
        cell=max(8, align),
    )
    expected = found.coverage.mean()
    # Four standard errors of one cell's share: none of some hundred cells should stray further.
    assert (found.corrupted - expected).abs().max() < 4 * (expected * (1 - expected) / count).sqrt() + 0.005
    # The stopping rule leaves 0.6 percentage points between edge and middle: the last block is a large one.
    edge = torch.cat([found.corrupted[0], found.corrupted[-1], found.corrupted[:, 0], found.corrupted[:, -1]])
    assert edge.mean() == pytest.approx(found.corrupted[2:-2, 2:-2].mean().item(), abs=0.03)


@pytest.mark.parametrize("recipe", ["smoke", "demo", "sscxr", "default"])
def test_shipped_recipes_corrupt_blocks_and_not_single_patches(recipe: str) -> None:
    settings = config.load(recipe)
    encoder, own = settings.encoder, settings.gmml
    assert encoder.img_size // encoder.patch_size >= 8
    for budget in (own.drop_budget, own.alien_budget):
        found = draw(
            (budget[0], budget[1]),
            size=encoder.img_size,
            align=own.align,
            max_block=own.max_block,
            centre_bias=own.centre_bias,
            count=100,
        )
        assert found.sides.mean() > 1.5 * encoder.patch_size
        assert (found.coverage >= budget[0]).all()
        assert found.coverage.max() < budget[1] + own.max_block**2


def test_cover_stops_at_the_first_rectangle_that_reaches_the_budget() -> None:
    start, end = gmml.draw_rectangles(
        64, 40, size=64, align=8, max_block=0.4, centre_bias=False, generator=generator()
    )
    budget = torch.linspace(1, 48, 64)
    mask, blocks = gmml.cover(start, end, grid=8, budget=budget)
    for image in range(64):
        union = torch.zeros(8, 8, dtype=torch.bool)
        needed = 0
        while union.sum() < budget[image] and needed < 40:
            top, left = start[image, needed].clamp(min=0)
            bottom, right = end[image, needed].clamp(max=8)
            union[top:bottom, left:right] = True
            needed += 1
        assert torch.equal(mask[image], union)
        assert blocks[image] == needed


def test_cover_ends_where_the_budget_is_out_of_reach() -> None:
    start, end = torch.zeros(2, 3, 2, dtype=torch.long), torch.ones(2, 3, 2, dtype=torch.long)
    mask, blocks = gmml.cover(start, end, grid=4, budget=torch.tensor([16.0, 1.0]))
    assert mask.flatten(1).sum(dim=1).tolist() == [1, 1]
    assert blocks.tolist() == [3, 1]


def objective(**changes: Any) -> GMML:
    settings = gmml.Settings(
        kinds=["noise", "alien"],
        drop_budget=[0.5, 0.75],
        alien_budget=[0.3, 0.3],
        max_block=0.5,
        align=8,
        centre_bias=False,
        blocks=[1, 2],
        head_layers=3,
        corrupted_only=True,
    )
    sizes = SIZES | {name: changes.pop(name) for name in SIZES if name in changes}
    views = [Views(1, sizes["img_size"], (0.5, 1.0))]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build("vit_tiny_patch16_224", depth=2, **sizes)
        return GMML(encoder=encoder, settings=replace(settings, **changes), views=views, **sizes).eval()


def images(count: int = 16, channels: int = 1) -> Tensor:
    return torch.randn(count, channels, 32, 32, generator=generator(1))


@pytest.mark.parametrize("kinds", [["noise"], ["zeros"], ["alien"], ["noise", "zeros", "alien"]])
@pytest.mark.parametrize("align", [1, 8])
def test_uncorrupted_pixels_are_untouched(kinds: list[str], align: int) -> None:
    clean = images()
    kept = clean.clone()
    corrupted, mask = objective(kinds=kinds, align=align).corrupt(clean, generator())
    assert torch.equal(clean, kept)
    assert mask.shape == (16, 1, 32, 32)
    assert mask.dtype == torch.bool
    assert torch.equal(corrupted[~mask], clean[~mask])
    assert (corrupted[mask] != clean[mask]).float().mean() > 0.99
    if align == 8:
        patches = mask.view(16, 4, 8, 4, 8).float().mean(dim=(2, 4))
        assert ((patches == 0) | (patches == 1)).all()


def test_alien_pixels_are_another_images_at_the_same_place() -> None:
    clean = images(12)
    corrupted, mask = objective(kinds=["alien"]).corrupt(clean, generator())
    for image in range(12):
        here = mask[image]
        donors = [other for other in range(12) if torch.equal(clean[other][here], corrupted[image][here])]
        assert len(donors) == 1
        assert donors[0] != image


def test_every_other_image_may_be_the_alien() -> None:
    clean = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 32, 32).contiguous()
    model, random, seen = objective(kinds=["alien"]), generator(), set()
    for _ in range(40):
        corrupted, mask = model.corrupt(clean, random)
        seen |= {(image, int(corrupted[image][mask[image]][0])) for image in range(4)}
    assert seen == {(a, b) for a in range(4) for b in range(4) if a != b}


def test_noise_is_standard_normal_and_zeros_are_zero() -> None:
    clean = images(64) * 5 + 3
    noise, mask = objective(kinds=["noise"]).corrupt(clean, generator())
    assert noise[mask].mean().abs() < 0.02
    assert noise[mask].std() == pytest.approx(1, abs=0.02)
    zeros, mask = objective(kinds=["zeros"]).corrupt(clean, generator())
    assert (zeros[mask] == 0).all()


def test_one_kind_an_image_at_even_odds_with_its_own_budget() -> None:
    clean = torch.full((900, 1, 32, 32), 7.0) + torch.arange(900.0).view(-1, 1, 1, 1)
    model = objective(kinds=["zeros", "alien"], drop_budget=(0.7, 0.75), alien_budget=(0.2, 0.2))
    corrupted, mask = model.corrupt(clean, generator())
    zero = torch.tensor([(corrupted[image][mask[image]] == 0).float().mean() for image in range(900)])
    assert ((zero == 0) | (zero == 1)).all()
    assert zero.mean() == pytest.approx(0.5, abs=0.05)
    coverage = mask.flatten(1).float().mean(dim=1)
    assert coverage[zero == 1].min() >= 0.7
    assert coverage[zero == 0].mean() < 0.35


def test_loss_is_zero_when_corrupted_pixels_are_right() -> None:
    clean = images()
    model = objective()
    _, mask = model.corrupt(clean, generator())
    elsewhere_wrong = torch.where(mask, clean, clean + 100)
    assert model.loss(elsewhere_wrong, clean, mask) == 0
    assert objective(corrupted_only=False).loss(elsewhere_wrong, clean, mask) > 1
    assert objective(corrupted_only=False).loss(clean, clean, mask) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_loss_is_the_mean_absolute_error_of_the_corrupted_pixels(channels: int) -> None:
    clean, prediction = images(channels=channels), images(channels=channels).flip(0)
    mask = objective().corrupt(images(), generator()).mask
    expected = (prediction - clean).abs()[mask.expand_as(clean)].mean()
    assert objective().loss(prediction, clean, mask) == pytest.approx(expected.item(), rel=1e-5)
    nothing = torch.zeros_like(mask)
    assert objective().loss(prediction, clean, nothing) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_return_to_their_places(monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    model = objective(in_chans=channels)
    model.head = nn.Identity()

    def pixels_as_tokens(encoder: nn.Module, batch: Tensor, blocks: list[int]) -> Tensor:
        return nn.functional.unfold(batch, 8, stride=8).transpose(1, 2)

    monkeypatch.setattr(gmml, "patch_tokens", pixels_as_tokens)
    clean = images(3, channels)
    assert torch.equal(model.reconstruct(clean), clean)


def test_same_seed_same_bytes_and_nothing_from_the_global_generator() -> None:
    clean, model = images(), objective()
    before = torch.get_rng_state()
    one, two, other = (model([clean], generator(seed), 0.0) for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kinds", [["noise"], ["alien"], ["noise", "alien"]])
def test_a_batch_of_one_works(kinds: list[str]) -> None:
    clean, model = images(1), objective(kinds=kinds)
    corrupted, mask = model.corrupt(clean, generator())
    assert mask.any()
    assert torch.equal(corrupted[~mask], clean[~mask])
    assert not torch.equal(corrupted[mask], clean[mask])
    assert model([clean], generator(), 0.0).isfinite()


def test_no_loop_over_images() -> None:
    model = objective(kinds=["noise", "zeros", "alien"])
    few, many = images(4), images(64)
    assert count_ops(lambda: model([few], generator(), 0.0)) == count_ops(
        lambda: model([many], generator(), 0.0)
    )


def test_a_few_steps_lower_the_loss_and_reach_every_weight() -> None:
    model = objective(kinds=["zeros"]).train()
    ramp = torch.linspace(-1, 1, 32).expand(8, 1, 32, 32) * torch.linspace(0.5, 1, 8).view(-1, 1, 1, 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(20):
        loss = model([ramp], generator(step), 0.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    unused = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert unused == []
