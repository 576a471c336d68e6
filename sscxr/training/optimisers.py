"""The optimisers that pretraining at a site may use: AdamW, AdamW at two time scales, Muon."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from sscxr.config.schema import PretrainConfig
from sscxr.training import optim

_SLOW_BETA: Final = 0.999  # of MT-DAO's slow moment
_SLOW_SHARE: Final = 0.5  # of it in a step; ours, since the paper's weight is not in what could be read
_MUON_MOMENTUM: Final = 0.95


class TwoScaleAdamW(torch.optim.AdamW):
    """AdamW whose steps follow its first moment and a slow one in equal parts (MT-DAO, arXiv 2510.05361).

    A slow moment outlives a round, so that the sites' average of it holds what they have in common.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step; the three moments are corrected for their start at zero."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state |= blank("mt-adamw", weight)
                state["step"] += 1
                steps = float(state["step"])
                state["exp_avg"].lerp_(weight.grad, 1 - beta1)
                state["slow"].lerp_(weight.grad, 1 - _SLOW_BETA)
                state["exp_avg_sq"].mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
                root = (state["exp_avg_sq"] / (1 - beta2**steps)).sqrt_().add_(group["eps"])
                fast = state["exp_avg"] * ((1 - _SLOW_SHARE) / (1 - beta1**steps))
                towards = fast.add_(state["slow"], alpha=_SLOW_SHARE / (1 - _SLOW_BETA**steps))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.addcdiv_(towards, root, value=-group["lr"])


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon for matrices, at AdamW's scale of a step, and AdamW for all else (FedMuon, arXiv 2510.27403)."""

    def __init__(self, model: nn.Module, *, lr: float, betas: tuple[float, float]) -> None:
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in learning if parameter.ndim == 2]
        others = [parameter for parameter in learning if parameter.ndim != 2]
        super().__init__([{"params": learning, "decays": True}], {"lr": lr})
        self._muon = torch.optim.Muon(
            [{"params": matrices, "decays": True}],
            lr=lr,
            momentum=_MUON_MOMENTUM,
            adjust_lr_fn="match_rms_adamw",
        )
        groups = [
            {"params": [one for one in others if one.ndim > 2], "decays": True},
            {"params": [one for one in others if one.ndim < 2], "decays": False},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
        self._muon.state = self._adamw.state = self.state
        self.param_groups = [*self._muon.param_groups, *self._adamw.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step of both."""
        self._muon.step()  # type: ignore[no-untyped-call]
        self._adamw.step()


def build(model: nn.Module, settings: PretrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser that `pretrain.optimiser` names."""
    betas = (float(settings.betas[0]), float(settings.betas[1]))
    if settings.optimiser == "muon":
        return MuonAdamW(model, lr=settings.lr, betas=betas)
    adamw = optim.adamw(model, lr=settings.lr, betas=betas)
    return TwoScaleAdamW(adamw.param_groups) if settings.optimiser == "mt-adamw" else adamw


def averaged(optimiser: str, parameter: nn.Parameter) -> tuple[str, str]:
    """Return the names of the first and second moments that a federation averages; "": none."""
    if optimiser == "muon" and parameter.ndim == 2:
        return "momentum_buffer", ""
    return "slow" if optimiser == "mt-adamw" else "exp_avg", "exp_avg_sq"


def blank(optimiser: str, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return a parameter's state before the first step."""
    if optimiser == "muon" and parameter.ndim == 2:
        return {"momentum_buffer": torch.zeros_like(parameter)}
    names = ("exp_avg", "exp_avg_sq", *(["slow"] if optimiser == "mt-adamw" else []))
    zeros = {name: torch.zeros_like(parameter) for name in names}
    return zeros | {"step": torch.zeros((), device=parameter.device)}
