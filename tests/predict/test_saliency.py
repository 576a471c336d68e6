"""Saliency: relevance falls where the label comes from, and looking leaves the model as it was."""

import pytest
import torch
from torch import nn

from sscxr import seeds
from sscxr.models import encoder as encoders
from sscxr.models.classifier import Classifier
from sscxr.predict import saliency


def make(pool: str = "mean", seed: int = 0) -> Classifier:
    with seeds.forked(seed):
        encoder = encoders.build("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2)
        model = Classifier(encoder, labels=2, pool=pool)
        nn.init.normal_(model.head.weight)
    return model.eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_map_a_image_that_sums_to_one(pool: str) -> None:
    found = saliency.relevance(make(pool), images(), 1)
    assert found.shape == (3, 4, 4)
    assert (found >= 0).all()
    assert torch.allclose(found.sum(dim=(1, 2)), torch.ones(3))
    # No image's map depends on its neighbours in the batch.
    alone = saliency.relevance(make(pool), images()[1:2], 1)
    assert torch.allclose(found[1:2], alone, atol=1e-5)


def test_the_model_says_the_same_afterwards() -> None:
    model, inputs = make(), images()
    before = model(inputs)
    fused = [block.attn.fused_attn for block in model.encoder.blocks]
    saliency.relevance(model, inputs, 0)
    assert torch.equal(model(inputs), before)
    assert [block.attn.fused_attn for block in model.encoder.blocks] == fused
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(block.attn.attn_drop._forward_hooks for block in model.encoder.blocks)


def test_a_frozen_encoder_has_maps_too() -> None:
    model = make()
    expected = saliency.relevance(model, images(), 0)
    model.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(saliency.relevance(model, images(), 0), expected)


@pytest.mark.slow
def test_relevance_lies_on_the_patch_that_decides() -> None:
    # The label is whether one patch, anywhere, is bright.
    source = torch.Generator().manual_seed(0)
    model = make().train()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)

    def batch(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs = 0.3 * torch.randn(count, 1, 4, 8, 4, 8, generator=source)
        where = torch.randint(16, (count,), generator=source)
        present = torch.rand(count, generator=source) < 0.5
        inputs[torch.arange(count)[present], 0, where[present] // 4, :, where[present] % 4] += 2
        return inputs.reshape(count, 1, 32, 32), where, present

    for _ in range(120):
        inputs, _, present = batch(32)
        loss = nn.functional.binary_cross_entropy_with_logits(model(inputs)[:, 0], present.float())
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.eval()
    inputs, where, present = batch(200)
    assert ((model(inputs)[:, 0] > 0) == present).float().mean() > 0.95
    hottest = saliency.relevance(model, inputs, 0).flatten(1).argmax(dim=1)
    assert (hottest == where)[present].float().mean() > 0.8
