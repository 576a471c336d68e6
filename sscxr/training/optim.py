"""AdamW as the recipes use it: which tensors decay, the schedules, and its moments as plain tensors."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from sscxr.config.schema import FinetuneConfig, PretrainConfig

# The states of a parameter, by optimiser: AdamW, AdamW at two time scales, Muon.
_STATES = ({"exp_avg", "exp_avg_sq", "step"}, {"exp_avg", "exp_avg_sq", "slow", "step"}, {"momentum_buffer"})
_MOMENTS = sorted(set.union(*_STATES))
_SPARED = ("pos_embed", "cls_token", "reg_token")  # of the encoder: in fine-tuning, no weight decay


@dataclass(frozen=True)
class Schedule:
    """Learning rate and weight decay as functions of the share of the whole run that is done.

    The rate rises linearly over `warmup`, then falls by a cosine to `min_lr`; the decay goes by a cosine from
    `weight_decay` to `weight_decay_end` (GMML; DINO's schedule).
    """

    lr: float
    min_lr: float
    warmup: float
    weight_decay: float
    weight_decay_end: float

    @classmethod
    def of(cls, settings: PretrainConfig | FinetuneConfig) -> Self:
        """Return the schedule of a section of settings; in fine-tuning the weight decay is constant."""
        decay = settings.weight_decay
        end = settings.weight_decay_end if isinstance(settings, PretrainConfig) else decay
        return cls(settings.lr, settings.min_lr, settings.warmup, decay, end)

    def at(self, progress: float) -> tuple[float, float]:
        """Return (learning rate, weight decay) at `progress` in 0..1."""
        progress = min(max(progress, 0.0), 1.0)
        decay = _cosine(self.weight_decay, self.weight_decay_end, progress)
        if progress < self.warmup:
            return self.lr * progress / self.warmup, decay
        after = (progress - self.warmup) / max(1e-12, 1 - self.warmup)
        return _cosine(self.lr, self.min_lr, after), decay


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(model: nn.Module, *, lr: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """Return AdamW over a model's parameters: those of two dimensions or more decay, biases and norms do not.

    As published, the position embedding and the class token, of three dimensions, do decay.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "decays": True},
        {"params": [p for p in parameters if p.ndim < 2], "decays": False},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=0.0, fused=True)


def layered_adamw(
    model: nn.Module, *, lr: float, betas: tuple[float, float], layer_decay: float, top: float = 1.0
) -> torch.optim.AdamW:
    """Return AdamW for fine-tuning, with lower rates nearer to the input (BEiT, arXiv 2106.08254, appendix).

    Block i of d, from 0, learns at `layer_decay` ** (d - i) of the rate, the embeddings at one power more; the
    final norm and the part on top of the encoder at the whole rate. Biases, norms, the position embedding and the
    class token do not decay. Parameters that need no gradient are left out.

    Args:
        model: has a timm ViT as `encoder`.
        top: the rate of the part on top of the encoder, as a multiple of the whole.
    """
    depth = len(cast(Any, model.encoder).blocks)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = layer_decay ** _layers_above(name, depth) if name.startswith("encoder.") else top
            decays = parameter.ndim >= 2 and name.rsplit(".", 1)[-1] not in _SPARED
            groups.setdefault((scale, decays), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": params, "scale": scale, "decays": decays} for (scale, decays), params in groups.items()],
        lr=lr,
        betas=betas,
        weight_decay=0.0,
        fused=True,
    )


def _layers_above(name: str, depth: int) -> int:
    """Return how many times the rate is reduced for a parameter of the encoder.

    `timm.optim.param_groups_layer_decay` is not used: for an encoder without a head it counts the final norm as the
    last block's, which then learns at the whole rate, and every block and the embeddings at a power less than
    BEiT's.
    """
    part, _, rest = name.removeprefix("encoder.").partition(".")
    if part == "blocks":
        return depth - int(rest.partition(".")[0])
    return depth + 1 if part in ("patch_embed", "norm_pre", *_SPARED) else 0


def set_rates(optimiser: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Set the rates of the next step."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def moments(optimiser: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the moments and step counts by parameter name, e.g. `exp_avg.encoder.norm.bias`, on the CPU."""
    tensors = {}
    for name, parameter in model.named_parameters():
        state = optimiser.state.get(parameter, {})
        for moment in _MOMENTS:
            if moment in state:
                tensors[f"{moment}.{name}"] = state[moment].detach().to("cpu", copy=True)
    return tensors


def restore_moments(
    optimiser: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Restore what `moments` returned; a parameter that it does not name starts anew.

    Raises:
        ValueError: a moment's shape is not its parameter's.
    """
    for name, parameter in model.named_parameters():
        found = {m: tensors[f"{m}.{name}"] for m in _MOMENTS if f"{m}.{name}" in tensors}
        if set(found) not in _STATES:
            continue
        for moment, tensor in found.items():
            if moment != "step" and tensor.shape != parameter.shape:
                raise ValueError(f"moments of {name} have shape {tuple(tensor.shape)}, not the parameter's")
        optimiser.state[parameter] = {
            moment: tensor.to(device=parameter.device, dtype=torch.float32, copy=True)
            for moment, tensor in found.items()
        }


def clip(parameters: Iterable[nn.Parameter], max_norm: float, *, per_tensor: bool) -> None:
    """Scale gradients to at most the norm `max_norm`: each to its own, as the released GMML code, or all together.

    By tensor, nothing is read back from the device.
    """
    if not per_tensor:
        nn.utils.clip_grad_norm_(parameters, max_norm)
    elif gradients := [parameter.grad for parameter in parameters if parameter.grad is not None]:
        norms = torch._foreach_norm(gradients)
        factors = (max_norm / (torch.stack(norms) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factors.unbind())
