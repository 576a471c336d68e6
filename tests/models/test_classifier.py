"""The classifier: a neutral start, pooling as the released encoder pools."""

from pathlib import Path

import pytest
import releases
import torch
from torch import Tensor

from sscxr.models.classifier import Classifier
from sscxr.models.encoder import build
from sscxr.release.release import load_encoder


def classifier(labels: int = 3, pool: str = "mean") -> Classifier:
    torch.manual_seed(0)
    return Classifier(build(releases.NAME, **releases.SIZES), labels=labels, pool=pool).eval()


def images(count: int = 5) -> Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def test_it_starts_neutral_and_at_the_odds_it_is_given() -> None:
    model = classifier()
    assert model(images()).shape == (5, 3)
    assert model(images()).abs().max() < 1e-2
    start = torch.tensor([0.5, -2.0, 0.0])
    model.start_at(start)
    assert torch.allclose(model(images()), start.expand(5, 3), atol=1e-2)


def test_its_features_are_what_the_released_encoder_gives(tmp_path: Path) -> None:
    model = classifier()
    released = load_encoder(releases.write(tmp_path / "encoder", model.encoder))
    assert torch.allclose(model.features(images()), released(images()), atol=1e-5)


def test_the_class_token_is_pooled_where_asked_for() -> None:
    model = classifier(pool="cls")
    tokens = model.encoder.forward_features(images())
    assert torch.equal(model.features(images()), tokens[:, 0])
    assert not torch.allclose(model.features(images()), classifier().features(images()), atol=1e-2)


def test_what_cannot_be_pooled_is_refused() -> None:
    encoder = build(releases.NAME, **releases.SIZES)
    with pytest.raises(ValueError, match="pool='max'"):
        Classifier(encoder, labels=1, pool="max")
    encoder.has_class_token = False
    with pytest.raises(ValueError, match="no class token"):
        Classifier(encoder, labels=1, pool="cls")
