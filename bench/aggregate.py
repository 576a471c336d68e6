"""Time and peak memory of folding the replies of N sites into the global encoder, compared with Flower's FedAvg.

    python bench/aggregate.py --sites 4,8,16,64,256 --codec fp32,fp16,int8 --flower --json aggregate.json

The replies are encoded as by a site, made one at a time as a Grid yields them, and go through the check and fold
of `server/rounds.py`. `--flower` hands the same updates, as fp32 or fp16 arrays, to
`flwr.serverapp.strategy.FedAvg`, which takes them all together (it has no int8). Each line is a separate process.
Peak memory is the process's, less that before the first reply; the encoder is that of configs/sscxr.yaml
(ViT-S/16) by default. `seconds` is processor time, `clock` wall time; with several threads the fold takes less
wall time, Flower's FedAvg does not.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, process_time

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from server.bounds import Bounds
from server.fold import ARRAYS, RECORD, Fold, to_arrays
from server.ledger import State
from server.optimisers import server_optimiser
from sscxr import config as configs
from sscxr.federation import codecs, wire
from sscxr.stages.pretrain import build_encoder

_DRAWN = 4  # different updates; a site's is one of them
Encoder = dict[str, torch.Tensor]


def peak_mb() -> float:
    """Return the process's peak resident memory so far, MB."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def replies(
    encoder: Encoder, sites: int, codec: str, fingerprint: str, *, flower: bool = False
) -> Iterator[tuple[str, int, Callable[[], Message]]]:
    """Yield each site's name, its images, and a function for its reply, an update of 1e-3 in every weight.

    Args:
        flower: make replies with an array for each tensor, as Flower's own strategies need them.
    """
    places = codecs.layout(codec, encoder)
    question = Message(RecordDict(), 1, "train", group_id="0")
    drawn = []
    for number in range(min(sites, _DRAWN)):
        source = torch.Generator().manual_seed(number)
        update = {name: 1e-3 * torch.randn(t.shape, generator=source) for name, t in encoder.items()}
        drawn.append(codecs.encode(update, codec, source))
    for number in range(sites):
        site, images = f"site-{number}", 1000 + number
        reply = wire.TrainReply(site, 0, 0, fingerprint, images, 1, 1.0, 1.0, "new")
        content = RecordDict({RECORD: ConfigRecord(dict(wire.to_record(reply)))})

        def reply(content: RecordDict = content, number: int = number) -> Message:
            data = drawn[number % _DRAWN]
            content[ARRAYS] = (
                ArrayRecord({name: Array(place.of(data)) for name, place in places.items()})
                if flower
                else to_arrays(data)
            )
            return Message(content, reply_to=question)

        yield site, images, reply


class Stopwatch:
    """Measures processor and wall time of its blocks."""

    def __init__(self) -> None:
        self.processor = self.clock = 0.0

    def __enter__(self) -> None:
        self.processor -= process_time()
        self.clock -= perf_counter()

    def __exit__(self, *error: object) -> None:
        self.processor += process_time()
        self.clock += perf_counter()


def ours(sites: int, codec: str, config: configs.Config, encoder: Encoder) -> tuple[Stopwatch, float]:
    """Fold the replies and step once; return the time, and the peak memory before the first reply."""
    fingerprint = wire.fingerprint(configs.recipe_hash(config))
    bounds = Bounds(config, State(0, encoder, {}))
    folder = Path(tempfile.gettempdir())
    fold = Fold(config.federation, encoder, fingerprint, bounds, round_number=0, attempt=0, folder=folder)
    spent, before = Stopwatch(), 0.0
    for site, _, make in replies(encoder, sites, codec, fingerprint):
        before = before or peak_mb()
        reply = make()
        with spent:
            row = fold.add(site, reply)
        assert row.outcome == "folded", row.reason
    with spent:
        server_optimiser(config).step(encoder, fold.total.mean(), 1.0)
    return spent, before


def flowers(sites: int, codec: str, config: configs.Config, encoder: Encoder) -> tuple[Stopwatch, float]:
    """Give the same replies to Flower's FedAvg; return the time, and the peak memory before the first reply."""
    strategy, all_of_them, before = FedAvg(weighted_by_key="num-examples"), [], 0.0
    for _, images, make in replies(encoder, sites, codec, "", flower=True):
        before = before or peak_mb()
        reply = make()
        content = RecordDict({ARRAYS: reply.content[ARRAYS]})
        content["metrics"] = MetricRecord({"num-examples": images})
        reply.content = content
        all_of_them.append(reply)
    spent = Stopwatch()
    with spent:
        found, _ = strategy.aggregate_train(1, all_of_them)
    assert found is not None
    return spent, before


def measure(
    sites: int, codec: str, config: configs.Config, *, flower: bool, threads: int
) -> dict[str, object]:
    """Return one line of the table."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 0
    torch.set_num_threads(threads)
    config.federation.uplink = codec
    encoder = {name: tensor.detach() for name, tensor in build_encoder(config).state_dict().items()}
    spent, before = (flowers if flower else ours)(sites, codec, config, encoder)
    return {
        "by": "flower" if flower else "sscxr",
        "sites": sites,
        "codec": codec,
        "model": config.encoder.name,
        "parameters": sum(tensor.numel() for tensor in encoder.values()),
        "threads": threads,
        "seconds": round(spent.processor, 3),
        "clock": round(spent.clock, 3),
        "peak_mb": round(peak_mb(), 1),
        "start_mb": round(before, 1),
    }


def _jobs(given: argparse.Namespace) -> Iterator[tuple[int, str, bool]]:
    for codec in given.codec.split(","):
        for sites in given.sites.split(","):
            yield int(sites), codec, False
            if given.flower and codec != "int8" and int(sites) <= given.flower_most:
                yield int(sites), codec, True


def main() -> None:
    """Print one line per measurement and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", default="8", help="how many; several, separated by commas")
    parser.add_argument("--codec", default="fp16", help="or several, separated by commas")
    parser.add_argument("--flower", action="store_true", help="also Flower's FedAvg, on the same replies")
    parser.add_argument("--flower-most", type=int, default=64, help="sites; more do not fit into memory")
    parser.add_argument("--config", default="sscxr", help="the recipe whose encoder is folded")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    if given.one:
        sites, codec, flower = json.loads(given.one)
        config = configs.load(given.config, given.overrides)
        print(json.dumps(measure(sites, codec, config, flower=flower, threads=given.threads)))
        return
    found = []
    for job in _jobs(given):
        command = [sys.executable, "-W", "ignore", *sys.argv, "--one", json.dumps(job)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print("  ".join(f"{name} {value}" for name, value in found[-1].items()), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
