"""What only a GPU can show: the same bytes twice, the CPU's results, and no wait for the device within a step."""

import federation as fed
import numpy as np
import pytest
import torch
from caches import make_cache
from torch import Tensor

from sscxr import seeds
from sscxr.config import Config
from sscxr.data.cache.cache import Cache, open_cache
from sscxr.objectives import gmml
from sscxr.stages import pretrain
from sscxr.training.device import set_up

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
IMAGES = 40


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("gpu") / "cache"
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 48, 48), dtype=np.uint8)
    make_cache(folder, pixels, {"split": (np.arange(IMAGES) + 0.5) / IMAGES})
    return open_cache(folder)


def settings(*overrides: str) -> Config:
    return fed.settings("pretrain.batch_size=8", "run.device=cuda", *overrides)


def trained(cache: Cache, *overrides: str) -> tuple[float, dict[str, Tensor]]:
    """The loss and the weights of one round."""
    config = settings(*overrides)
    training = pretrain.SiteTraining(config, set_up(config), cache)
    done = training.train_round(np.arange(IMAGES), site="anna", round_number=0, budget=600.0)
    return done.loss, {name: tensor.cpu() for name, tensor in training.objective.state_dict().items()}


@pytest.mark.parametrize("compiling", ["false", "auto"])
def test_two_rounds_are_the_same_bytes(cache: Cache, compiling: str) -> None:
    one, other = (trained(cache, f"run.compile={compiling}") for _ in range(2))
    assert one[0] == other[0]
    assert all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())


def test_no_step_waits_for_the_device(cache: Cache) -> None:
    config = settings()
    training = pretrain.SiteTraining(config, set_up(config), cache)
    source = seeds.generator(training.device, 0, "corrupt")
    pixels = torch.from_numpy(cache.images[:8]).to(training.device)
    for mode in ("default", "error"):  # the first step starts cuDNN and the like
        torch.cuda.set_sync_debug_mode(mode)
        try:
            loss = training.loss(pretrain.views(pixels, config, source), source)
            assert isinstance(loss, Tensor)
            loss.backward()  # type: ignore[no-untyped-call]
            pretrain.optim.clip(training.objective.parameters(), 1.0, per_tensor=True)
            training.optimiser.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_same_rectangles_cover_the_same_cells() -> None:
    source = torch.Generator().manual_seed(0)
    start, end = gmml.draw_rectangles(
        64, 241, size=224, align=1, max_block=0.3, centre_bias=True, generator=source
    )
    budget = 224**2 * torch.linspace(0.3, 0.75, 64)
    mask, count = gmml.cover(start, end, grid=224, budget=budget)
    there = gmml.cover(start.cuda(), end.cuda(), grid=224, budget=budget.cuda())
    assert torch.equal(there[0].cpu(), mask)
    assert torch.equal(there[1].cpu(), count)


def test_the_encoder_sees_what_the_cpus_sees(cache: Cache) -> None:
    config = settings()
    encoder = pretrain.build_encoder(config).eval()
    images = pretrain.whole(torch.from_numpy(cache.images[:8]), config)
    with torch.no_grad():
        here = encoder.forward_features(images)
        there = encoder.cuda().forward_features(images.cuda()).cpu()
    assert torch.allclose(here, there, atol=1e-3)
