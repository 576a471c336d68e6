"""The parts of an image that support a label: attention weighted by its gradient, rolled out through the blocks.

Chefer et al., "Generic attention-model explainability" (arXiv 2103.15679, 3.1), for a ViT: the relevance of
tokens to each other starts as the identity, and each block adds the relevance that its attention passes on, A R,
where A is the mean over heads of the positive part of attention times the label's gradient. As published, the
result is the class token's row. Here it depends on the head's pooling: each token counts by its share in the
logit, the positive part of the token times its gradient (ours, for mean pooling; for the class token it is the
published rule).

A bright spot shows where the model looked, not that it looked at the right thing for the right reason.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sscxr.models.classifier import Classifier


def relevance(model: Classifier, images: Tensor, label: int) -> Tensor:
    """Return how much each patch supports a label.

    Args:
        model: in eval mode.
        images: float32 [B, 1, H, W], normalised.
        label: the logit's index.

    Returns:
        float32 [B, H / patch, W / patch], not below 0; each image's sums to 1, or is 0 if nothing supports the
        label.
    """
    encoder = model.encoder
    with torch.enable_grad(), _observed(encoder) as seen:
        logits = model(images.detach().requires_grad_(True))
        tokens, attentions = seen["tokens"], seen["attentions"]
        gradients = torch.autograd.grad(logits[:, label].sum(), [tokens, *attentions])
    shares = (tokens * gradients[0]).sum(dim=-1).clamp(min=0)  # [B, T]
    passed = torch.eye(shares.shape[1], device=shares.device).repeat(len(shares), 1, 1)
    for attention, gradient in zip(attentions, gradients[1:], strict=True):
        passed = passed + (attention * gradient).clamp(min=0).mean(dim=1) @ passed  # [B, T, T]
    found = (shares.unsqueeze(1) @ passed)[:, 0, int(encoder.num_prefix_tokens) :].detach()
    found = found / found.sum(dim=1, keepdim=True).clamp(min=1e-12)
    patch = cast(Any, encoder.patch_embed).patch_size
    grid = [side // size for side, size in zip(images.shape[-2:], patch, strict=True)]
    return cast(Tensor, found.reshape(len(found), *grid))


@contextmanager
def _observed(encoder: VisionTransformer) -> Iterator[dict[str, Any]]:
    """Record the encoder's attention maps [B, heads, T, T] by block and its last tokens [B, T, D]."""
    seen: dict[str, Any] = {"attentions": []}

    def kept(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen["attentions"].append(output)

    def kept_tokens(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen["tokens"] = output

    with ExitStack() as stack:
        for block in encoder.blocks:
            attention = cast(Any, block).attn
            # Fused kernels never compute the map; the plain path passes it through its dropout, idle in eval
            # mode.
            stack.callback(setattr, attention, "fused_attn", attention.fused_attn)
            attention.fused_attn = False
            stack.callback(attention.attn_drop.register_forward_hook(kept).remove)
        stack.callback(encoder.norm.register_forward_hook(kept_tokens).remove)
        yield seen
