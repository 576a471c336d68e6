"""Print a site cache's content, and draw a map of its images by an encoder's features.

    python examples/embedding_map.py --cache CACHE --encoder runs/demo/encoder --out map.png

Without --cache it draws phantoms; without --encoder the weights are random, for comparison. Images that are close
look similar to the encoder. If they cluster by source, it sees the machine.
"""

import argparse
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

import sscxr
from sscxr.data.phantoms import phantom
from sscxr.data.prepare.prepare import prepare
from sscxr.models import inference
from sscxr.models.encoder import build

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--cache", type=Path, help="the folder of a prepared site cache")
parser.add_argument("--encoder", help="a release, or a run's encoder: folder or address")
parser.add_argument("--out", type=Path, default=Path("map.png"), help="the picture to write")


def main(argv: list[str] | None = None) -> None:
    asked = parser.parse_args(argv)
    cache = sscxr.open_cache(asked.cache or phantoms())
    print(cache)
    print(cache.index.groupby(["source", "view"]).size().rename("images"))
    print({label: int((cache.label(label) == 1).sum()) for label in cache.labels})

    torch.manual_seed(0)
    random = build("vit_tiny_patch16_224", img_size=64, patch_size=8, depth=4)
    encoder = sscxr.load_encoder(asked.encoder) if asked.encoder else random  # a timm ViT
    mean, std = (encoder.pretrained_cfg[key][0] for key in ("mean", "std"))
    size = encoder.patch_embed.img_size[0]
    wants = inference.Input(size, mean, std)
    features = inference.features(encoder, cache.images, wants=wants)  # [N, D]

    standard = StandardScaler().fit_transform(features)
    places = TSNE(perplexity=min(30, len(cache) / 4), init="pca", random_state=0).fit_transform(standard)
    labels = np.full(len(cache), "none known", dtype=object)
    for name in cache.labels:
        labels[cache.label(name) == 1] = name
    figure, axes = plt.subplots(1, 2, figsize=(11, 6.5), layout="constrained")
    for axis, title, names in zip(axes, ("source", "label"), (cache.index["source"], labels), strict=True):
        for name in sorted(set(names)):
            axis.scatter(*places[np.asarray(names) == name].T, s=12, label=name)
        axis.set(title=f"by {title}", xticks=[], yticks=[])
        axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0, 0))
    figure.savefig(asked.out, dpi=120)
    print(asked.out)


def phantoms() -> Path:
    folder = Path(mkdtemp(prefix="phantoms-"))
    manifests = phantom.write(folder / "files", images=96, sites=3, seed=0)
    return prepare(manifests, folder / "cache", size=96).folder


if __name__ == "__main__":
    main()
