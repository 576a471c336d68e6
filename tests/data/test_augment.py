"""Augmentation: a whole crop is a plain antialiased resize, boxes stay inside, and left stays left."""

import pytest
import torch
from ops import count_ops
from torch import Tensor, nn

from sscxr.data import augment

PLAIN = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "brightness": 0.0, "contrast": 0.0}
SHIPPED = {
    "crop_scale": (0.5, 1.0),
    "crop_ratio": (0.75, 1.3333),
    "flip": 0.0,
    "brightness": 0.1,
    "contrast": 0.1,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 6, size: int = 80) -> Tensor:
    return torch.randint(0, 256, (count, size, size), generator=generator(1), dtype=torch.uint8)


def views(batch: Tensor, seed: int = 0, **changes: object) -> Tensor:
    settings = {**PLAIN, "blur": 0.0, "out": 64, "mean": 0.5, "std": 0.25, **changes}
    return augment.views(batch, generator=generator(seed), **settings)


@pytest.mark.parametrize(("size", "out"), [(80, 64), (128, 64), (256, 224), (64, 64), (100, 31), (48, 64)])
def test_the_whole_image_is_a_plain_antialiased_resize(size: int, out: int) -> None:
    batch = images(3, size)
    expected = nn.functional.interpolate(
        batch[:, None].float() / 255, size=(out, out), mode="bilinear", antialias=True, align_corners=False
    )
    expected = (expected - 0.5) / 0.25
    whole = augment.whole(batch, out=out, mean=0.5, std=0.25)
    assert whole.shape == (3, 1, out, out)
    assert whole.dtype == torch.float32
    assert torch.allclose(whole, expected, atol=2e-5)
    assert torch.allclose(views(batch, out=out), expected, atol=2e-5)


def test_a_crop_at_full_resolution_is_a_slice() -> None:
    batch = images(2)
    start, extent = torch.tensor([[3.0, 10.0], [0.0, 16.0]]), torch.full((2, 2), 64.0)
    found = augment.crop(batch, start, extent, out=64)
    assert torch.allclose(found[0], batch[0, 3:67, 10:74].float(), atol=1e-3)
    assert torch.allclose(found[1], batch[1, 0:64, 16:80].float(), atol=1e-3)


def test_a_crop_is_the_place_it_names() -> None:
    rows = torch.arange(80.0).view(1, 80, 1).expand(1, 80, 80)
    start, extent = torch.tensor([[20.0, 5.0]]), torch.tensor([[40.0, 60.0]])
    found = augment.crop(rows, start, extent, out=20)[0]
    centres = 20 + (torch.arange(20) + 0.5) * 2 - 0.5  # of twenty rows of 2 px
    assert torch.allclose(found, centres.view(20, 1).expand(20, 20), atol=1e-3)


def test_crop_boxes_lie_within_the_image_and_follow_their_law() -> None:
    start, extent = augment.random_crops(
        5000, size=80, scale=(0.5, 1.0), ratio=(0.75, 1.5), generator=generator()
    )
    assert (start >= 0).all()
    assert (extent > 0).all()
    assert (start + extent <= 80 + 1e-3).all()
    share = extent.prod(dim=1) / 80**2
    assert share.min() > 0.5 * 0.85  # a side that would not fit is cut
    assert share.max() <= 1 + 1e-5
    fits = (extent < 80).all(dim=1)
    assert share[fits].min() >= 0.5 - 1e-5
    ratio = extent[:, 1] / extent[:, 0]
    assert ratio.min() >= 0.75 - 1e-3
    assert ratio.max() <= 1.5 + 1e-3
    middle = (torch.tensor(0.75).log() + torch.tensor(1.5).log()) / 2
    assert ratio[fits].log().mean() == pytest.approx(middle.item(), abs=0.02)
    room = (80 - extent)[fits]
    assert (start[fits] / room).mean() == pytest.approx(0.5, abs=0.02)


def test_values_stay_in_range() -> None:
    batch = torch.cat(
        [images(), torch.full((2, 80, 80), 255, dtype=torch.uint8), torch.zeros_like(images(2))]
    )
    for seed in range(10):
        grey = views(batch, seed, **{**SHIPPED, "brightness": 0.5, "contrast": 0.9, "blur": 1.0}) * 0.25 + 0.5
        assert grey.isfinite().all()
        assert grey.min() >= -1e-6
        assert grey.max() <= 1 + 1e-6


def test_left_stays_left_unless_asked() -> None:
    batch = torch.zeros(200, 80, 80, dtype=torch.uint8)
    batch[:, :, :40] = 200  # the heart's side, say
    # Full-width boxes: the left half is in view and on the left.
    kept = views(batch, **{**SHIPPED, "crop_scale": (0.9, 1.0), "flip": 0.0})
    assert (kept[..., :32].mean(dim=(1, 2, 3)) > kept[..., 32:].mean(dim=(1, 2, 3))).all()
    mirrored = views(batch, **{**SHIPPED, "crop_scale": (0.9, 1.0), "flip": 1.0})
    assert torch.equal(mirrored.flip(-1), kept)
    some = views(batch, flip=0.5)
    assert (some[..., 0, 0] < 0).float().mean() == pytest.approx(0.5, abs=0.1)


def test_brightness_and_contrast_do_what_they_say() -> None:
    batch = images(400)
    plain, varied = (grey * 0.25 + 0.5 for grey in (views(batch), views(batch, brightness=0.1)))
    change = varied.mean(dim=(1, 2, 3)) / plain.mean(dim=(1, 2, 3)) - 1
    assert change.abs().max() <= 0.101
    assert change.min() < -0.08
    assert change.max() > 0.08
    varied = views(batch // 2 + 64, contrast=0.1)
    gain = varied.std(dim=(1, 2, 3)) / views(batch // 2 + 64).std(dim=(1, 2, 3)) - 1
    assert gain.abs().max() <= 0.101
    assert gain.max() > 0.08


def test_blur_smooths_and_keeps_the_level() -> None:
    batch = images(50)
    sharp, soft = views(batch), views(batch, blur=1.0)
    assert (soft.std(dim=(1, 2, 3)) < sharp.std(dim=(1, 2, 3)) + 1e-6).all()
    assert soft.std() < 0.95 * sharp.std()
    assert soft.mean() == pytest.approx(sharp.mean().item(), abs=0.01)
    assert torch.equal(views(batch, blur=0.0), sharp)


def test_each_image_has_a_view_of_its_own() -> None:
    found = views(images(1).expand(8, -1, -1), **SHIPPED)
    assert all(not torch.equal(found[0], found[other]) for other in range(1, 8))


def test_same_seed_same_bytes_and_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    one, two, other = (views(images(), seed, **SHIPPED) for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_loop_over_images() -> None:
    few, many = images(2), images(32)
    assert count_ops(lambda: views(few, **SHIPPED)) == count_ops(lambda: views(many, **SHIPPED))


def test_a_batch_of_one_works() -> None:
    assert views(images(1), **SHIPPED).shape == (1, 1, 64, 64)


# ---- whole images moved, with their masks


STILL = {"rotate": 0.0, "shift": 0.0, "scale": (1.0, 1.0), "flip": 0.0, "brightness": 0.0, "contrast": 0.0}
MOVING = {"rotate": 10.0, "shift": 0.05, "scale": (0.85, 1.15), "brightness": 0.2, "contrast": 0.2}


def moved(
    batch: Tensor, masks: Tensor | None = None, seed: int = 0, **changes: object
) -> tuple[Tensor, Tensor]:
    settings = {**STILL, "out": batch.shape[-1], "mean": 0.0, "std": 1.0, **changes}
    return augment.affine(batch, masks, generator=generator(seed), **settings)


def blob(count: int = 8, size: int = 64, top: int = 20, left: int = 36, side: int = 12) -> Tensor:
    batch = torch.zeros(count, size, size, dtype=torch.uint8)
    batch[:, top : top + side, left : left + side] = 255
    return batch


def centre(grey: Tensor) -> Tensor:
    """Row and column of each image's centre of mass, [B, 2]."""
    grey = grey.float()
    places = torch.arange(grey.shape[-1]).float() + 0.5
    total = grey.sum(dim=(1, 2))
    return torch.stack([grey.sum(dim=2) @ places / total, grey.sum(dim=1) @ places / total], dim=1)


@pytest.mark.parametrize(("size", "out"), [(80, 64), (128, 64), (64, 64)])
def test_what_is_not_moved_is_the_whole_image(size: int, out: int) -> None:
    batch = images(3, size)
    masks = (torch.rand(3, size, size, generator=generator(2)) > 0.5).to(torch.uint8) * 255
    found, same = moved(batch, masks, out=out, mean=0.5, std=0.25)
    assert torch.allclose(found, augment.whole(batch, out=out, mean=0.5, std=0.25), atol=1e-4)
    assert same.shape == (3, out, out)
    if size == out:
        assert torch.equal(same, masks)


@pytest.mark.parametrize(
    "change",
    [{"rotate": 30.0}, {"shift": 0.2}, {"scale": (0.6, 1.4)}, {"flip": 0.5}, {**MOVING, "flip": 0.5}],
)
@pytest.mark.parametrize("out", [64, 32])
def test_masks_move_as_their_images_do(change: dict[str, object], out: int) -> None:
    batch = blob()
    grey, masks = moved(batch, batch, out=out, **{**change, "brightness": 0.0, "contrast": 0.0})
    assert set(masks.unique().tolist()) == {0, 255}, "values are not mixed"
    assert torch.allclose(centre(grey[:, 0]), centre(masks), atol=0.6), "but for the nearest pixel"
    assert (centre(masks) - centre(masks)[0]).abs().max() > 0.5, "each image moves its own way"
    agree = ((grey[:, 0] > 0.5) == (masks > 0)).float().mean()
    assert agree > 0.97


def test_ignored_pixels_stay_ignored_pixels() -> None:
    masks = blob()
    masks[:, :10] = 127
    assert set(moved(blob(), masks, **MOVING)[1].unique().tolist()) == {0, 127, 255}


def test_scale_is_the_chests_size_and_shift_its_place() -> None:
    batch = blob(side=16)
    area = (moved(batch, scale=(1.25, 1.25))[0][:, 0]).sum(dim=(1, 2)) / 16**2
    assert torch.allclose(area, torch.full_like(area, 1.25**2), rtol=0.02)
    away = centre(moved(blob(500), shift=0.1)[0][:, 0]) - centre(blob(1))
    assert away.abs().max() <= 6.4 + 1e-2
    assert away.abs().max(dim=0).values.min() > 6.0
    assert away.mean(dim=0).abs().max() < 0.6


def test_rotation_is_in_degrees_about_the_middle() -> None:
    batch = blob(500)
    offset = centre(moved(batch, rotate=10.0)[0][:, 0]) - 32
    before = (centre(blob(1)) - 32)[0]
    assert torch.allclose(offset.norm(dim=1), before.norm().expand(500), atol=0.1)
    angle = torch.rad2deg(torch.atan2(offset[:, 0], offset[:, 1]) - torch.atan2(before[0], before[1]))
    assert angle.abs().max() <= 10.1
    assert angle.min() < -9.5
    assert angle.max() > 9.5


def test_what_comes_from_beyond_the_image_is_black_and_no_lung() -> None:
    white = torch.full((50, 32, 32), 255, dtype=torch.uint8)
    grey, masks = moved(white, white, shift=0.3)
    assert ((grey[:, 0] < 0.01) == (masks == 0)).float().mean() > 0.95
    assert (masks == 0).any()


def test_the_same_generator_moves_alike_whether_or_not_there_are_masks() -> None:
    batch = images(4, 32)
    first, none = moved(batch, **MOVING, seed=3)
    again, _ = moved(batch, batch, **MOVING, seed=3)
    assert none is None
    assert torch.equal(first, again)
    assert not torch.equal(first, moved(batch, **MOVING, seed=4)[0])


def test_a_mirror_image_is_exact() -> None:
    batch = images(40, 32)
    found = moved(batch, flip=0.5)[0][:, 0]
    plain, mirrored = batch.float() / 255, batch.flip(-1).float() / 255
    is_plain = (found - plain).abs().amax(dim=(1, 2)) < 1e-3
    is_mirrored = (found - mirrored).abs().amax(dim=(1, 2)) < 1e-3
    assert (is_plain ^ is_mirrored).all()
    assert 8 < is_mirrored.sum() < 32
