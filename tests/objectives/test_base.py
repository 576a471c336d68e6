"""A method with a teacher: it stays at the site, survives between rounds, and moves after each step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import federation as fed
import numpy as np
import pytest
import torch
from caches import make_cache
from torch import Tensor, nn

from sscxr.config import Config
from sscxr.data.cache.cache import open_cache
from sscxr.objectives import OBJECTIVES
from sscxr.objectives.base import Objective, Views
from sscxr.runs import Words
from sscxr.stages.pretrain import SiteTraining, build_encoder

CPU = torch.device("cpu")


class Taught(Objective):
    """Follows the moving average of itself."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.head = nn.Linear(int(self.encoder.embed_dim), 4)
        self.teacher = nn.Linear(int(self.encoder.embed_dim), 4).requires_grad_(False)
        self.views = [Views(1, 32, (0.5, 1.0))]
        self.progress: list[float] = []

    @classmethod
    def settings(cls, config: Config) -> None:
        return None

    @classmethod
    def words(cls, config: Config) -> Words:
        return Words()

    @classmethod
    def build(cls, encoder: nn.Module, config: Config) -> Self:
        return cls(encoder)

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, progress: float) -> Tensor:
        (images,) = views
        noise = torch.randn(images.shape, generator=generator)
        features = self.encoder.forward_features(images + 0.1 * noise).mean(dim=1)
        return nn.functional.mse_loss(self.head(features), self.teacher(features))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.progress.append(progress)
        for own, taught in zip(self.teacher.parameters(), self.head.parameters(), strict=True):
            own.lerp_(taught, 0.5)

    def private(self) -> dict[str, Tensor]:
        return {f"teacher.{name}": tensor.clone() for name, tensor in self.teacher.state_dict().items()}

    def load_private(self, tensors: Mapping[str, Tensor]) -> None:
        self.teacher.load_state_dict({n.removeprefix("teacher."): tensor for n, tensor in tensors.items()})


class Plain(Taught):
    """Without noise, so that parts and the whole see the same; of two views, in two groups."""

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, progress: float) -> Tensor:
        one, other = (self.encoder.forward_features(group).mean(dim=1) for group in views)
        first, second = one.chunk(2)
        return nn.functional.mse_loss(self.head(first + 2 * second), self.teacher(other))


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setitem(OBJECTIVES, "taught", Taught)
    made = fed.settings("federation.rounds=2", "encoder.drop_path=0", "pretrain.batch_size=8")
    made.pretrain.objective = "taught"
    return made


def trained(training: SiteTraining, round_number: int) -> dict[str, Tensor]:
    training.train_round(np.arange(16), site="a", round_number=round_number, budget=600)
    return {name: tensor.clone() for name, tensor in training.objective.state_dict().items()}


@pytest.mark.parametrize("blank", [False, True])
def test_a_teacher_goes_on_from_the_sites_state(tmp_path: Path, config: Config, blank: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32), dtype=np.uint8)
    make_cache(tmp_path, pixels, {})
    cache = open_cache(tmp_path)
    first = SiteTraining(config, CPU, cache)
    assert isinstance(first.objective, Taught)
    start = first.objective.private()
    trained(first, 0)
    assert first.objective.progress == [0.25, 0.5]
    kept, shared = first.local(), first.parts.shared()
    assert {name for name in kept if "teacher" in name} == {"private.teacher.weight", "private.teacher.bias"}
    assert not any("teacher" in name or "head" in name for name in shared)
    assert not torch.equal(kept["private.teacher.weight"], start["teacher.weight"])

    second = SiteTraining(config, CPU, cache, blank=blank)
    second.parts.load_shared(shared)
    second.load_local(kept)
    whole, resumed = trained(first, 1), trained(second, 1)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_parts_add_up_to_the_loss_of_a_mean(config: Config, count: int) -> None:
    method = Plain(build_encoder(config).eval())
    method.views = [Views(2, 32, (0.5, 1.0)), Views(1, 32, (0.1, 0.4))]
    groups = [torch.randn(8, 1, 32, 32), torch.randn(4, 1, 32, 32)]
    whole = method(groups, torch.Generator(), 0.5)
    found = torch.stack(list(method.parts(groups, torch.Generator(), 0.5, count)))
    torch.testing.assert_close(found.sum(), whole)
    assert len(found) == min(count, 4)
