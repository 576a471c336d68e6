"""The cost of opening and sampling a cache of 10 thousand images and of a million, and of simulating many sites.

    python bench/scale.py --images 10000,1000000 --json scale.json
    python bench/scale.py --images "" --sites 256 --json sites.json

Pixels are a hole in a file. Opening is a site's work at a message: open a cache, find its rows, read 64 images.
It is measured in a separate process, with and without the index's columns (`index.safetensors`); memory is the
increase over a process with the same imports. The simulation is one round of the smoke recipe,
inline, a batch at each site, without probes and pictures.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import noise
import numpy as np

_SIZE = 64  # px a side of the sparse images


def peak_mb() -> float:
    """Return the process's peak resident memory so far, MB."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def opened(folder: Path) -> dict[str, Any]:
    """Open a cache, find its training rows, read a batch."""
    from sscxr.data.cache.cache import open_cache

    before, began, computed = peak_mb(), perf_counter(), process_time()
    cache = open_cache(folder)
    rows = cache.rows()
    rows = rows[~cache.held_out(0.2)[rows]]
    batch = cache.images[np.random.default_rng(0).choice(rows, 64, replace=False)]
    assert batch.shape == (64, cache.size, cache.size)
    return {
        "images": len(cache),
        "columns": cache.columns is not None,
        "seconds": round(perf_counter() - began, 4),
        "cpu_s": round(process_time() - computed, 4),
        "gained_mb": round(peak_mb() - before, 1),
        "pandas": "pandas" in sys.modules,
    }


def simulated(sites: int) -> dict[str, Any]:
    """Simulate one round over sites with 16 training images each."""
    import rounds

    with tempfile.TemporaryDirectory() as scratch:
        began, computed = perf_counter(), process_time()
        run = argparse.Namespace(config="smoke", steps=1, sites=sites, rounds=0, overrides=[])
        [spent] = rounds.in_process("inline", Path(scratch), run)["seen"]
        rows = (Path(scratch) / "sites.csv").read_text().splitlines()
        return {
            "sites": sum(",folded," in row for row in rows),
            "seconds": round(perf_counter() - began, 1),
            "cpu_s": round(process_time() - computed, 1),
            "training_s": round(spent["training"], 1),
            "peak_mb": round(peak_mb(), 1),
        }


def _alone(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print("  ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return found


def main() -> None:
    """Print one line per measurement and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default="10000,1000000", help="of the caches, separated by commas")
    parser.add_argument("--sites", type=int, default=0, help="of a simulation; 0: none")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--simulate", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.open or given.simulate:
        print(json.dumps(opened(given.open) if given.open else simulated(given.simulate)))
        return
    from sscxr.data.cache import columns
    from sscxr.data.cache.cache import read_index

    found = []
    for images in (int(text) for text in given.images.split(",") if text):
        with tempfile.TemporaryDirectory() as scratch:
            folder = noise.make(Path(scratch) / "cache", images, _SIZE, sparse=True)
            found.append(_alone("--open", str(folder)))
            columns.write(folder, read_index(folder))
            found.append(_alone("--open", str(folder)))
    if given.sites:
        found.append(_alone("--simulate", str(given.sites)))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
