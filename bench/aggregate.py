"""Seconds and peak memory of folding the replies of N sites into the global encoder.

    python bench/aggregate.py --sites 64 --codec fp16 --json aggregate.json

The replies are encoded as a site encodes them, made one at a time as a Grid yields them, and go through the
very check and fold of `server/rounds.py`. Peak memory is the process's, less what it held before the first
reply; the encoder is that of configs/sscxr.yaml (ViT-S/16) unless told otherwise.
"""

import argparse
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from server.aggregate import server_optimiser
from server.fold import ARRAYS, RECORD, Fold, to_arrays
from sscxr import codecs, wire
from sscxr import config as configs
from sscxr.training.pretrain import build_encoder


def peak_mb() -> float:
    """The process's peak resident memory so far, MB."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def replies(
    encoder: dict[str, torch.Tensor], sites: int, codec: str, fingerprint: str
) -> Iterator[tuple[str, Message]]:
    """One site's reply at a time, an update of a thousandth of the weights' size."""
    question = Message(RecordDict(), 1, "train", group_id="0")
    for number in range(sites):
        source = torch.Generator().manual_seed(number)
        update = {name: 1e-3 * torch.randn(t.shape, generator=source) for name, t in encoder.items()}
        site = f"site-{number}"
        said = wire.TrainReply(
            site=site,
            round=0,
            attempt=0,
            fingerprint=fingerprint,
            images=1000 + number,
            steps=1,
            loss=1.0,
            seconds=1.0,
            state="new",
        )
        content = RecordDict({RECORD: ConfigRecord(dict(wire.to_record(said)))})
        content[ARRAYS] = to_arrays(codecs.encode(update, codec, source))
        yield site, Message(content, reply_to=question)


def measure(sites: int, codec: str, recipe: str, overrides: list[str]) -> dict[str, object]:
    """Fold `sites` replies and step once."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 0
    config = configs.load(recipe, [f"federation.uplink={codec}", *overrides])
    encoder = {name: tensor.detach() for name, tensor in build_encoder(config).state_dict().items()}
    fingerprint = wire.fingerprint(configs.recipe_hash(config))
    before, seconds = peak_mb(), 0.0
    fold = Fold(config.federation, encoder, fingerprint, round_number=0, attempt=0)
    for site, reply in replies(encoder, sites, codec, fingerprint):
        began = perf_counter()
        row = fold.add(site, reply)
        seconds += perf_counter() - began
        assert row.outcome == "folded", row.reason
    began = perf_counter()
    server_optimiser(config.federation.server).step(encoder, fold.total.mean())
    seconds += perf_counter() - began
    return {
        "sites": sites,
        "codec": codec,
        "model": config.encoder.name,
        "parameters": sum(tensor.numel() for tensor in encoder.values()),
        "seconds": round(seconds, 3),
        "peak_mb": round(peak_mb(), 1),
        "start_mb": round(before, 1),
    }


def main() -> None:
    """Print a line and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--codec", choices=list(codecs.CODECS), default="fp16")
    parser.add_argument("--config", default="sscxr", help="the recipe whose encoder is folded")
    parser.add_argument("--json", help="where to write the figures")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    found = measure(given.sites, given.codec, given.config, given.overrides)
    print("  ".join(f"{name} {value}" for name, value in found.items()))
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
