"""The memory that a site's round takes; `bench/memory.py` compares the formula for pretraining with processes.

The formula counts the tensors at the two possible peaks of a round: the start of a backward pass, when all of a
step's activations exist, and the end of the round, when the update and the site's state are copied.
"""

from typing import Any, cast

import torch

from sscxr.config import Config
from sscxr.stages import pretrain
from sscxr.training.moments import AVERAGED
from sscxr.training.parts import Parts
from sscxr.training.site_model import MOST_AT_ONCE

# All in bytes, ours, by `bench/memory.py` on a CPU.
PROCESS = 0.32e9  # Python, torch, timm and Flower, imported; it differs by machine and by torch's build
_FIRST_STEP = 0.1e9  # what torch loads and keeps at the first step
_IN_STEP = 20  # a parameter: weight, two moments; the message's encoder, as it came and as decoded
_AT_END = 34  # a parameter: the same, the moments' copy, the update and its encoding
_MOMENT_IN_STEP, _MOMENT_AT_END = 8, 19  # a parameter, for each moment that is averaged: likewise
# For each token and channel of a block, the numbers for its backward pass: the inputs of the two norms and of the
# four linear layers (the second of the MLP's is four times as wide), attention's three inputs and its output, and
# GELU's.
_BLOCK = {"fp32": 72, "bf16": 60}
_BLOCK_INPUT = 4  # for a block that is computed again, only its input is kept
_VALUE = 4  # a number that the head keeps for its backward pass
_PER_IMAGE = 12  # a parameter: an image's gradient, weighed, and joined with others of its patient
_FROZEN = 8  # a parameter that is not trained, such as a teacher's: itself, and in the site's state
# For each pixel of a view: clean, noise, alien and corrupted, the mask, the prediction and its error.
_PIXEL = 80
# For fine-tuning, coarser, measured on two cores: the process; for each parameter, fp32 weight, gradient, two
# moments and a copy; for each image, token, channel and block, the numbers that the backward pass keeps in fp32.
_TUNING_PROCESS, _TUNED, _TUNING_BLOCK = 0.6e9, 20, 90


def of_round(config: Config, parts: Parts, *, bf16: bool) -> float:
    """Return the bytes that a round of the run's stage takes at its peak.

    Args:
        parts: the stage's model.
        bf16: whether the device computes in it; it matters only for pretraining.
    """
    return of_pretraining(config, bf16=bf16) if config.pretrains else of_tuning(config, parts)


def of_tuning(config: Config, parts: Parts) -> float:
    """Return the bytes that a round of fine-tuning takes at its peak; arguments as in `of_round`."""
    parameters = sum(p.numel() for part in (parts.encoder, parts.head) for p in part.parameters())
    vit = cast(Any, parts.encoder)
    numbers = int((vit.patch_embed.num_patches + vit.num_prefix_tokens) * vit.embed_dim)  # of a block
    kept = numbers * len(vit.blocks) * _TUNING_BLOCK
    batch = config.learning.batch_size
    at_once = min(batch, MOST_AT_ONCE) if config.privacy.noise else batch
    step = at_once * kept + _single(config, parameters, at_once)
    return _TUNING_PROCESS + float(_TUNED * parameters + step)


def _single(config: Config, parameters: int, at_once: int) -> float:
    """Return the bytes of single images' gradients, which training with differential privacy takes."""
    return _PER_IMAGE * parameters * at_once if config.privacy.noise else 0.0


def of_pretraining(config: Config, *, bf16: bool) -> float:
    """Return the peak bytes of a round in main memory, or in the GPU's and the process's own together.

    Args:
        config: that of a stage that pretrains.
        bf16: whether the device computes in it (`device.in_bf16`).
    """
    with torch.device("meta"):  # only shapes: takes neither memory nor time
        objective = pretrain.build_objective(config)
    encoder = cast(Any, objective.encoder)
    parameters = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in objective.parameters() if not parameter.requires_grad)
    settings = config.pretrain
    at_once = -(-settings.batch_size // settings.accumulate)
    if config.privacy.noise:
        at_once = min(at_once, MOST_AT_ONCE)
    block, blocks = _BLOCK["bf16" if bf16 else "fp32"], objective.depth
    kept = block + _BLOCK_INPUT * blocks if settings.checkpointing else block * blocks
    step = at_once * (objective.tokens * encoder.embed_dim * kept + _VALUE * objective.head_values)
    step += _single(config, parameters, at_once)
    step += settings.batch_size * sum(group.count * group.size**2 for group in objective.views) * _PIXEL
    sent = sum(AVERAGED[config.moments])
    in_step, at_end = _IN_STEP + _MOMENT_IN_STEP * sent, _AT_END + _MOMENT_AT_END * sent
    trained = max(in_step * parameters + step, at_end * parameters)
    return PROCESS + _FIRST_STEP + float(trained + _FROZEN * frozen)
