"""What a run was asked for, kept in its folder: it goes on with the same, or not at all."""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from server.ledger import MAY_CHANGE, LedgerError, differing
from sscxr import config as configs
from sscxr import files
from sscxr.config import Config
from sscxr.data import corpora
from sscxr.data.cache.cache import Cache
from sscxr.data.cache.store import is_cache
from sscxr.files import refuse_file, write_atomically
from sscxr.runs import PROBES, SCORES

# What phantoms depend on, and the cache that is made of them.
_DRAWN = {"--clients", "run.seed", "sim.phantoms", "sim.uncertain", "sim.train_on_test", "data.cache_size"}


def is_started(out: Path) -> bool:
    """Whether a run is in the folder; before its first message there is only data."""
    return (out / "config.yaml").exists()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep the folder to this process.

    Raises:
        LedgerError, ExistsError: another one runs in it; it is a file.
    """
    refuse_file(out)
    out.mkdir(parents=True, exist_ok=True)
    refusal = LedgerError(f"another process runs in {out}; wait for it, or give another --out")
    with files.locked(out / ".lock", refusal):
        yield


def same_data(out: Path, cache: Cache, partition: str) -> None:
    """Hold a run to the images and the partition it started with.

    Args:
        partition: the text of `partition.csv`.

    Raises:
        LedgerError: they changed since.
    """
    digest = hashlib.sha256("\n".join([*cache.index["image"], partition]).encode()).hexdigest()
    file = out / "data.json"
    if is_started(out) and file.exists():
        before = json.loads(file.read_text())
        if before["sha256"] != digest:
            raise LedgerError(
                f"the data has changed since the run in {out} started ({before['images']} images then, "
                f"{len(cache)} now); bring it back, or give another --out"
            )
    write_atomically(file, json.dumps({"images": len(cache), "sha256": digest}).encode())


def is_finished(out: Path) -> bool:
    """Whether the run in the folder has left all that it should: of its files `PROBES` or `SCORES` comes last."""
    last = any((out / name).exists() for name in (PROBES, SCORES))
    return last and (out / "encoder" / "model.safetensors").exists()


def _placed(path: Path) -> str:
    """A path, or a corpus and its path, from wherever the program is called."""
    of_corpus = corpora.named(path)
    return str(path.resolve()) if of_corpus is None else f"{of_corpus[0].name}:{of_corpus[1].resolve()}"


def agree(out: Path, config: Config, clients: int, data: Sequence[Path]) -> None:
    """Note what a new run is asked for in `out/asked.json`; hold one to go on with to what is noted.

    A start that came to nothing holds the next one to nothing but files that it had prepared, if it had any.

    Raises:
        LedgerError: something else was asked for, named; nothing was changed then.
    """
    file = out / "asked.json"
    asked = {
        "--clients": clients,
        "--data": [_placed(path) for path in data],
        "settings": configs.as_dict(config),
    }
    if file.exists():
        keys = [key.removeprefix("settings.") for key in differing(json.loads(file.read_text()), asked)]
        if not is_started(out):
            _make_way(out, keys, drawn=not json.loads(file.read_text())["--data"])
        elif refused := [key for key in keys if key not in MAY_CHANGE]:
            raise LedgerError(
                f"{out} was started with other settings ({', '.join(refused[:5])}); "
                "resume with the same ones, or give another --out"
            )
        if is_started(out):
            return
    write_atomically(file, json.dumps(asked, indent=1, sort_keys=True).encode())


def _make_way(out: Path, keys: Collection[str], *, drawn: bool) -> None:
    """Delete what a start that came to nothing made, as far as the next one asks for another.

    Args:
        keys: what differs.
        drawn: whether it was made of phantoms.
    """
    of_files = [out / name for name in ("cache", "prepared") if is_cache(out / name) and not drawn]
    if "--data" in keys and of_files:
        raise LedgerError(
            f"{of_files[0]} was prepared from other --data; delete it to begin with these, or give another --out"
        )
    shutil.rmtree(out / "sites", ignore_errors=True)
    if "--data" in keys or (drawn and not _DRAWN.isdisjoint(keys)):
        for name in ("phantoms", "cache", "prepared"):
            shutil.rmtree(out / name, ignore_errors=True)
