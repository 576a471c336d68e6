"""Peak memory of a site's round of pretraining, compared with the formula of `sscxr/stages/memory.py`.

    python bench/memory.py --config default --json memory.json
    python bench/memory.py --model vit_small_patch16_224 --setting "pretrain.batch_size=8" run.threads=1

Every setting runs in a separate process: the steps of `client/app.py` on images of noise, two optimiser steps.
The peak is the kernel's (`ru_maxrss`), and so is what the process takes before its round, with everything imported,
which differs by machine and by torch's build. The recipe is the default one; a model keeps its own number of
blocks.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from step import noise
from timing import report

import client.work  # noqa: F401 - what a site's process imports
from sscxr import config as configs
from sscxr import seeds
from sscxr.config import Config
from sscxr.federation import codecs
from sscxr.stages import memory, pretrain
from sscxr.training.device import set_up

MODELS = ("vit_small_patch16_224", "vit_large_patch16_224")
SETTINGS = (
    "pretrain.batch_size=16",
    "pretrain.batch_size=8",
    "pretrain.batch_size=8 pretrain.views=2",
    "pretrain.batch_size=8 pretrain.accumulate=4",
    "pretrain.batch_size=8 pretrain.checkpointing=true",
    "pretrain.batch_size=8 pretrain.amp=bf16",
)


def site_round(config: Config, folder: Path) -> None:
    """Do the work of a site between a message and its reply, without the transport."""
    device = set_up(config)
    cache = noise(folder, config, 2 * config.pretrain.batch_size)
    training = pretrain.SiteTraining(config, device, cache)
    message = codecs.encode(training.shared(), config.federation.downlink)
    received = codecs.decode(message, config.federation.downlink, training.shared())
    training.load_shared(received)
    rows = np.arange(len(cache.images))
    training.train_round(rows, site="bench", round_number=0, budget=1e9)
    after = training.shared()
    update = {name: after[name].float() - received[name] for name in received}
    source = seeds.generator("cpu", 0, "encode")
    reply = codecs.encode_update(update, {}, config.federation.uplink, source)
    kept = training.local()
    del message, reply, kept  # held until here, as at a site


def peak(config: Config) -> tuple[float, float]:
    """Return the bytes of a separate process before a round, and at the round's peak."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(config, theirs))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"the round ended with exit code {process.exitcode}")
    before, highest = ours.recv()
    return before, highest


def _child(config: Config, answer: Connection) -> None:
    before = _highest()  # a fork begins with what its parent has imported
    with tempfile.TemporaryDirectory() as folder:
        site_round(config, Path(folder))
    answer.send((before, _highest()))


def _highest() -> float:
    scale = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)


def settings_of(recipe: str, model: str, text: str, overrides: list[str]) -> Config:
    """Return a recipe with another model, whose last block and every second one before it feed the head."""
    import timm

    with torch.device("meta"):
        depth = len(timm.create_model(model).blocks)
    blocks = [f"encoder.name={model}", f"gmml.blocks={list(range(depth // 2, depth + 1, 2))}"]
    given = ["federation.local_epochs=1", "federation.rounds=1", *blocks, *text.split(), *overrides]
    return configs.load(recipe, given)


def measure(
    recipe: str, models: Sequence[str], settings: Sequence[str], overrides: list[str]
) -> dict[str, object]:
    """Return measured and predicted GB for each model and setting, of the process and of the rest."""
    found: dict[str, object] = {}
    for model in models:
        for text in settings:
            config = settings_of(recipe, model, text, overrides)
            before, measured = peak(config)
            predicted = memory.of_pretraining(config, bf16=config.pretrain.amp == "bf16")
            found[f"{model} {text}"] = {
                "peak_gb": measured / 1e9,
                "predicted_gb": predicted / 1e9,
                "predicted / peak": predicted / measured,
                "process_gb": before / 1e9,
                "predicted / peak, without the process": (predicted - memory.PROCESS) / (measured - before),
            }
            print(f"{model} {text}: {found[f'{model} {text}']}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Print the figures and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="default", help="the recipe")
    parser.add_argument("--model", action="append", help="several: one each; none: ViT-S and ViT-L")
    parser.add_argument("--setting", action="append", help="a set of overrides; several: one each")
    parser.add_argument("--json", help="where to write the figures")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    report(
        measure(given.config, given.model or MODELS, given.setting or SETTINGS, given.overrides), given.json
    )


if __name__ == "__main__":
    main()
