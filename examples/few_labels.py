"""Fine-tune a released encoder with few labels in plain PyTorch: it is a timm ViT, and does not need sscxr.

    python examples/few_labels.py --encoder runs/demo/encoder --cache CACHE --label pneumonia

`sscxr finetune classify` does this with layer-wise rates, early stopping and intervals; this script is for those
who have a training loop already. Without --cache it draws phantoms; without --encoder the weights are random.
"""

import argparse
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import sscxr
from sscxr.data import augment
from sscxr.data.phantoms import phantom
from sscxr.data.prepare.prepare import prepare
from sscxr.models.encoder import build

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--cache", type=Path, help="the folder of a prepared site cache with labels")
parser.add_argument("--encoder", help="a release, or a run's encoder: folder or address")
parser.add_argument("--label", default="pneumonia")
parser.add_argument("--per-class", type=int, default=16, help="images with, and without, the label")
parser.add_argument("--steps", type=int, default=60)


def main(argv: list[str] | None = None) -> None:
    asked = parser.parse_args(argv)
    cache = sscxr.open_cache(asked.cache or phantoms())
    torch.manual_seed(0)
    random = build("vit_tiny_patch16_224", img_size=64, patch_size=8, depth=4)
    encoder = sscxr.load_encoder(asked.encoder) if asked.encoder else random  # a timm ViT
    mean, std = (encoder.pretrained_cfg[key][0] for key in ("mean", "std"))
    size = encoder.patch_embed.img_size[0]
    model = nn.Sequential(encoder, nn.Linear(encoder.num_features, 1))
    truth = cache.label(asked.label)  # NaN: unknown
    held_out = cache.held_out(0.2)  # whole patients

    def logits(rows: np.ndarray) -> torch.Tensor:
        return model(augment.whole(torch.from_numpy(cache.images[rows]), out=size, mean=mean, std=std))[:, 0]

    pools = [np.flatnonzero((truth == one) & ~held_out)[: asked.per_class] for one in (0, 1)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    draw = np.random.default_rng(0)
    model.train()
    for step in range(asked.steps):
        rows = np.concatenate([draw.choice(pool, size=8) for pool in pools])
        loss = nn.functional.binary_cross_entropy_with_logits(logits(rows), torch.from_numpy(truth[rows]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    rows = np.flatnonzero(~np.isnan(truth) & held_out)
    with torch.inference_mode():
        model.eval()
        found = torch.cat([logits(part) for part in np.array_split(rows, -(-len(rows) // 64))])
    print(f"AUROC {roc_auc_score(truth[rows], found):.3f} on {len(rows)} images of held-out patients")


def phantoms() -> Path:
    folder = Path(mkdtemp(prefix="phantoms-"))
    manifests = phantom.write(folder / "files", images=96, sites=2, seed=0)
    return prepare(manifests, folder / "cache", size=96).folder


if __name__ == "__main__":
    main()
