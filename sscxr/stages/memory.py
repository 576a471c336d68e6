"""How much memory a site's round of pretraining takes: a formula, and `bench/memory.py` holds it against processes.

It counts what is alive at the two moments that a round may peak at: the start of a backward pass, when a step's
activations are all there, and the end of the round, when the update and the site's state are copied.
"""

from typing import Any, cast

import torch

from sscxr.config import Config
from sscxr.stages import pretrain

# All in bytes, ours, by `bench/memory.py` on a CPU.
_PROCESS = 0.39e9  # Python, torch, timm and Flower
_IN_STEP = 20  # a parameter: weight, two moments; the message's encoder, as it came and as decoded
_AT_END = 34  # a parameter: the same, the moments' copy, the update and its encoding
# For each token and channel of a block, what its backward pass needs: the inputs of the two norms and of the four
# linear layers (the second of the MLP's is four times as wide), attention's three inputs and its output, GELU's.
_BLOCK = {"fp32": 72, "bf16": 60}
_BLOCK_INPUT = 4  # all that is kept of a block that is computed again
_VALUE = 4  # a number that the head keeps for its backward pass
_FROZEN = (
    8  # a parameter that is not trained, such as a teacher's: itself, and as it came from the site's state
)
# For each pixel of a view: clean, noise, alien and corrupted, the mask, the prediction and its error.
_PIXEL = 80


def of_pretraining(config: Config, *, bf16: bool) -> float:
    """Bytes of main memory, or of the GPU's with the process's own, that a round takes at its peak.

    Args:
        config: of a stage that pretrains.
        bf16: whether the device computes in it (`device.in_bf16`).
    """
    with torch.device("meta"):  # shapes alone: no memory, no time
        objective = pretrain.build_objective(config)
    encoder = cast(Any, objective.encoder)
    parameters = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in objective.parameters() if not parameter.requires_grad)
    settings = config.pretrain
    at_once = -(-settings.batch_size // settings.accumulate)
    block, blocks = _BLOCK["bf16" if bf16 else "fp32"], objective.depth
    kept = block + _BLOCK_INPUT * blocks if settings.checkpointing else block * blocks
    step = at_once * (objective.tokens * encoder.embed_dim * kept + _VALUE * objective.head_values)
    step += settings.batch_size * sum(group.count * group.size**2 for group in objective.views) * _PIXEL
    trained = max(_IN_STEP * parameters + step, _AT_END * parameters)
    return _PROCESS + float(trained + _FROZEN * frozen)
