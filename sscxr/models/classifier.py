"""A classifier: an encoder, its tokens pooled, one linear layer (DeiT's head; mean pooling as in MAE)."""

from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

# Of the head's weights: the first predictions are the same for every image (MAE's fine-tuning).
_INIT_STD = 2e-5


class Classifier(nn.Module):
    """Classifier of independent labels: any of them may be present together.

    Attributes:
        encoder: a timm ViT without a head.
        head: linear, features to logits.
        frozen_rate: factor on the rate of the head on a frozen encoder.
    """

    # Ours, on paediatric X-rays: at the plain rate the head stays far from the best linear classifier (AUROC 0.86;
    # with this factor 0.93).
    frozen_rate = 20.0

    def __init__(self, encoder: VisionTransformer, *, labels: int, pool: str) -> None:
        """Build the head. Its initialisation uses torch's global generator.

        Args:
            encoder: its `forward_features` returns tokens after the final norm.
            labels: how many logits.
            pool: "mean" of the patch tokens, or "cls", the class token.
        """
        super().__init__()
        if pool not in ("mean", "cls"):
            raise ValueError(f"pool={pool!r} is none of mean, cls")
        if pool == "cls" and not encoder.has_class_token:
            raise ValueError("pool='cls': the encoder has no class token; pool the mean")
        self.encoder = encoder
        self.pool = pool
        self.head = nn.Linear(int(encoder.embed_dim), labels)
        nn.init.trunc_normal_(self.head.weight, std=_INIT_STD)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor) -> Tensor:
        """Return pooled tokens [B, D] of normalised images [B, 1, H, W]."""
        tokens = cast(Any, self.encoder).forward_features(images)  # [B, P + N, D], P prefix tokens
        if self.pool == "cls":
            return cast(Tensor, tokens[:, 0])
        return cast(Tensor, tokens[:, int(self.encoder.num_prefix_tokens) :].mean(dim=1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, L] of normalised images [B, 1, H, W]."""
        return cast(Tensor, self.head(self.features(images)))

    @torch.no_grad()
    def start_at(self, logits: Tensor) -> None:
        """Make the head begin at these logits [L], such as the labels' log-odds."""
        self.head.bias.copy_(logits)
