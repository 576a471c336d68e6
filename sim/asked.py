"""Records a run's settings and data in its folder: it resumes only with the same ones."""

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

# Settings that phantoms, and the cache made of them, depend on.
_DRAWN = {"--clients", "run.seed", "sim.phantoms", "sim.uncertain", "sim.train_on_test", "data.cache_size"}


def is_started(out: Path) -> bool:
    """Return whether a run has started in the folder; before its first message there is only data."""
    return (out / "config.yaml").exists()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock the folder for this process.

    Raises:
        LedgerError: another process runs in it.
        ExistsError: it is a file.
    """
    refuse_file(out)
    out.mkdir(parents=True, exist_ok=True)
    refusal = LedgerError(f"another process runs in {out}; wait for it, or give another --out")
    with files.locked(out / ".lock", refusal):
        yield


def same_data(out: Path, cache: Cache, partition: str) -> None:
    """Check that a run has the images and the partition that it started with.

    Args:
        partition: the text of `partition.csv`.

    Raises:
        LedgerError: they have changed.
    """
    digest = hashlib.sha256("\n".join([*cache.index["image"], partition]).encode()).hexdigest()
    file = out / "data.json"
    if is_started(out) and file.exists():
        before = json.loads(file.read_text())
        if before["sha256"] != digest:
            raise LedgerError(
                f"the data has changed since the run in {out} started ({before['images']} images then, "
                f"{len(cache)} now); restore it, or give another --out"
            )
    write_atomically(file, json.dumps({"images": len(cache), "sha256": digest}).encode())


def is_finished(out: Path) -> bool:
    """Return whether the run in the folder is complete: it writes `PROBES` or `SCORES` last."""
    last = any((out / name).exists() for name in (PROBES, SCORES))
    return last and (out / "encoder" / "model.safetensors").exists()


def placed(path: Path) -> str:
    """Return a path, or a corpus and its path, independent of the working directory."""
    of_corpus = corpora.named(path)
    return str(path.resolve()) if of_corpus is None else f"{of_corpus[0].name}:{of_corpus[1].resolve()}"


def agree(out: Path, config: Config, clients: int, data: Sequence[Path]) -> None:
    """Record a new run's settings and data in `out/asked.json`; check those of a resumed run against it.

    A run that never started binds the next one only to the files that it had prepared, if any.

    Raises:
        LedgerError: settings or data differ, which are named; nothing is changed then.
    """
    file = out / "asked.json"
    asked = {
        "--clients": clients,
        "--data": [placed(path) for path in data],
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
    """Delete the files of a run that never started, as far as the settings in `keys` need others."""
    of_files = [out / name for name in ("cache", "prepared") if is_cache(out / name) and not drawn]
    if "--data" in keys and of_files:
        raise LedgerError(
            f"{of_files[0]} was prepared from other --data; delete it to start with these, or give another --out"
        )
    shutil.rmtree(out / "sites", ignore_errors=True)
    if "--data" in keys or (drawn and not _DRAWN.isdisjoint(keys)):
        for name in ("phantoms", "cache", "prepared"):
            shutil.rmtree(out / name, ignore_errors=True)
