"""From data to the folder of virtual sites: what each hospital would have on its own disk."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from client.settings import METRICS
from sim import asked, holdings, published
from sim.partition import groups_of, partition
from sscxr import config as configs
from sscxr import printable, yaml_text
from sscxr.config import Config, ConfigError
from sscxr.data import columns, phantom
from sscxr.data import published as tested
from sscxr.data.cache import Cache, CacheError, open_cache, read_index
from sscxr.data.prepare import prepare
from sscxr.data.progress import Display
from sscxr.report.record import HOLDINGS, NOTES


def gather(data: Sequence[Path], out: Path, config: Config, clients: int) -> Cache:
    """One cache of all data: phantoms where none is given, a cache as it is, anything else prepared.

    Raises:
        PrepareError, ManifestError, SourceError, CacheError, PhantomError: one line that says what is wrong.
    """
    caches = [path for path in data if (path / "summary.json").is_file()]
    others = [path for path in data if path not in caches]
    if not data:
        others = _draw(out / "phantoms", config.sim.phantoms, clients, config.run.seed)
    if len(caches) == 1 and not others:
        return open_cache(caches[0])
    if others:
        own = out / ("prepared" if caches else "cache")
        prepared = prepare(
            others,
            own,
            size=config.data.cache_size,
            uncertain=config.sim.uncertain,
            train_on_test=config.sim.train_on_test,
        )
        caches.append(prepared.folder)
    return open_cache(caches[0]) if len(caches) == 1 else _joined(caches, out / "cache")


def check_labelled(cache: Cache, config: Config) -> None:
    """Refuse to fine-tune on what no image has: every site would have nothing to train on, the server would wait.

    Raises:
        ConfigError: a label that no image has; no mask.
    """
    stage = config.run.stage
    absent = (
        [name for name in config.classify.labels if name not in cache.labels] if stage == "classify" else []
    )
    if absent:
        there = f"there are: {', '.join(cache.labels)}" if cache.labels else "there is no label at all"
        raise ConfigError(f"classify.labels: no image of the data is labelled {', '.join(absent)}; {there}")
    if stage == "segment" and not (cache.index["has_mask"] == 1).any():
        raise ConfigError("run.stage=segment: no image of the data has a lung mask; prepare it with masks")


def _draw(folder: Path, images: int, sites: int, seed: int) -> list[Path]:
    with Display(shown=True).counting(0, images, "drawing phantoms", "images") as counter:
        return phantom.write(folder, images=images, sites=sites, seed=seed, on_image=counter.step)


def _joined(folders: Sequence[Path], out: Path) -> Cache:
    """Several caches as one.

    Patients cannot be matched across caches, since each has a salt of its own.

    Raises:
        CacheError: other sizes, or an image that is in two of them: its patient could be trained on and tested on.
    """
    caches = [open_cache(folder) for folder in folders]
    _check_apart(caches)
    sizes = {cache.size for cache in caches}
    if len(sizes) > 1:
        raise CacheError(
            f"the caches have {sorted(sizes)} px a side; prepare them with one --size to join them"
        )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(0o700, parents=True)
    _write(partial / "images.npy", caches, [cache.images for cache in caches])
    if any(cache.masks is not None for cache in caches):
        _write(partial / "masks.npy", caches, [cache.masks for cache in caches])
    index = pd.concat([cache.index for cache in caches], ignore_index=True)
    (partial / "index.csv").write_text(printable.frame(index, index=False), encoding="utf-8")
    columns.write(partial, read_index(partial))
    sources = list(dict.fromkeys(s for cache in caches for s in cache.summary.get("sources", [])))
    summary = {"format_version": caches[0].summary["format_version"], "sources": sources}
    summary["images"] = sum(len(cache) for cache in caches)
    (partial / "summary.json").write_text(json.dumps(summary, indent=1))
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return open_cache(out)


def _write(file: Path, caches: Sequence[Cache], parts: Sequence[npt.NDArray[np.uint8] | None]) -> None:
    """Write what the caches have, one after the other; where one has none, zeros."""
    shape = (sum(len(cache) for cache in caches), caches[0].size, caches[0].size)
    joined = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    start = 0
    for cache, part in zip(caches, parts, strict=True):
        if part is not None:
            joined[start : start + len(cache)] = part
        start += len(cache)
    joined.flush()


def _check_apart(caches: Sequence[Cache]) -> None:
    seen: set[bytes] = set()
    for cache in caches:
        own = {hashlib.sha256(image.tobytes()).digest() for image in cache.images}
        if seen & own:
            raise CacheError(
                f"{len(seen & own)} images of {cache.folder} are in another of the caches too, and patients cannot "
                "be matched across caches; prepare their sources into one cache"
            )
        seen |= own


def write_sites(cache: Cache, out: Path, config: Config, clients: int) -> list[str]:
    """Partition the cache and write `out/sites/NAME/site.yaml`, one a virtual site.

    Also `out/partition.csv` (see `published.py`), `out/holdings.csv`, `out/holdings.png` and `out/notes.json`.
    For a resumed run all is written again, to the same content.

    Returns:
        The sites' names, in the order of their folders.

    Raises:
        LedgerError: the run in `out` started with other images or another partition.
        PartitionError: a partition that cannot be made.
    """
    parts, notes = _parts(cache, config, clients)
    table = "".join(f"{group},{name}\n" for name, members in parts.items() for group in members)
    asked.same_data(out, cache, table)
    _describe(cache, out, config, parts, notes)
    for name, members in parts.items():
        folder = out / "sites" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "groups.txt").write_text("".join(f"{group}\n" for group in members))
        settings = {
            "name": name,
            "cache": str(cache.folder.resolve()),
            "state": "state",
            "groups": "groups.txt",
            "stages": [config.run.stage],
            "metrics": list(METRICS),
            "min_cell": 1,  # a virtual site has nothing to protect; the run's own holds
        }
        (folder / "site.yaml").write_text(yaml_text.dump(settings), encoding="utf-8")
    return sorted(parts)


def _parts(cache: Cache, config: Config, clients: int) -> tuple[dict[str, list[str]], list[str]]:
    """The sites' patient groups, and lines on where a partition file and the data differ."""
    laterals, test_share = config.data.laterals, config.data.test_share
    settings, minimum = config.sim, config.privacy.min_cell
    groups = groups_of(cache, laterals=laterals, test_share=test_share, by=settings.by, label=settings.label)
    if settings.file is not None:
        rows = cache.rows(laterals=laterals)
        index, held_out = cache.index.iloc[rows], cache.held_out(test_share)[rows]
        return published.read(Path(settings.file), index, held_out, groups, minimum)
    parts = partition(
        groups, settings.partition, clients, alpha=settings.alpha, minimum=minimum, seed=config.run.seed
    )
    return parts, []


def _describe(cache: Cache, out: Path, config: Config, parts: dict[str, list[str]], notes: list[str]) -> None:
    """Who holds what, for people and for other programs."""
    rows = cache.rows(laterals=config.data.laterals)
    index, held_out = cache.index.iloc[rows], cache.held_out(config.data.test_share)[rows]
    describe(index, held_out, out, parts, notes)


def describe(
    index: pd.DataFrame,
    held_out: npt.NDArray[np.bool_],
    out: Path,
    parts: dict[str, list[str]],
    notes: list[str],
) -> list[str]:
    """Write the partition, its table and its picture, and the lines that the report and the card say of it."""
    home = holdings.homes(index, parts)
    counts = holdings.table(index, held_out, home)
    trained = [group for members in parts.values() for group in members]
    notes = [*notes, *tested.lines(index, held_out, trained), *holdings.warnings(index, held_out, home)]
    (out / "partition.csv").write_text(published.text(index, held_out, parts), encoding="utf-8")
    (out / "holdings.csv").write_text(printable.frame(counts), encoding="utf-8")
    (out / HOLDINGS).write_bytes(holdings.picture(index, home, counts))
    (out / NOTES).write_text(json.dumps(notes, indent=1) + "\n")
    return notes


def write_config(config: Config, out: Path) -> Path:
    """The run's settings as the ServerApp reads them."""
    file = out / "sites" / "run.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(configs.dumps(config), encoding="utf-8")
    return file
