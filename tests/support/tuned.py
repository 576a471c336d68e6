"""Small fine-tuned models on disk: random networks, which tell nothing, always the same."""

from collections.abc import Sequence
from pathlib import Path

import torch

from sscxr import config, seeds
from sscxr.finetuning import finetuned
from sscxr.finetuning.finetuned import Spec

SIZE = 32  # px at the encoder's input


def make_model(
    folder: Path,
    *,
    task: str = "classify",
    labels: Sequence[str] = ("pneumonia",),
    seed: int = 0,
    **more: str,
) -> Path:
    """Write a model of one or four blocks, settings with a cache of 32 px, and further files by name."""
    depth = 1 if task == "classify" else 4
    args = {"img_size": SIZE, "patch_size": 8, "in_chans": 1, "depth": depth}
    spec = Spec(task, "vit_tiny_patch16_224", args, 0.5, 0.25, list(labels), feature_size=4)
    with seeds.forked(seed, "model"):
        model = finetuned.build(spec)
        if task == "classify":
            torch.nn.init.normal_(model.head.weight)  # as it starts, the head says the same of every image
    settings = config.load("default", ["data.cache_size=32", "run.threads=1", "probe.resamples=50"])
    extra = {finetuned.SETTINGS: config.dumps(settings), finetuned.TRAINED_ON: "group,part\n"} | more
    return finetuned.save(folder, model, spec, extra=extra)
