"""The images of a comparison: gathered once, and the same for every cell.

With `patients: validation` the patients that an acceptance is tested on are left out of the cells' cache, and the
places of the others are stretched to 0..1, so that `data.test_share` sets aside validation patients.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from server.ledger import LedgerError
from sim.asked import placed
from sim.data import gather
from sscxr.config import Config
from sscxr.data.cache.assemble import write_copy
from sscxr.data.cache.cache import VIEWED, Cache, CacheError, open_cache
from sscxr.files import write_atomically

_GIVEN = "given.json"


def images_of(data: Sequence[Path], out: Path, config: Config, clients: int, *, validation: bool) -> Cache:
    """Return the cache that every cell reads.

    Args:
        data: caches, manifests, folders or corpora; none: phantoms.
        out: the folder of the comparison; the images, or a view of them, are kept in `out/data`.
        config: the settings that all cells share.
        clients: the hospitals that phantoms are drawn for.
        validation: leave out the patients that `data.test_share` sets aside, and set aside others.

    Raises:
        LedgerError: the comparison in `out` has other data.
    """
    folder = out / "data"
    given = {
        "--data": [placed(path) for path in data],
        "settings": {
            "data.cache_size": config.data.cache_size,
            "sim.uncertain": config.sim.uncertain,
            "sim.train_on_test": config.sim.train_on_test,
            **({} if data else {"phantoms": [config.sim.phantoms, clients, config.run.seed]}),
        },
    }
    file = folder / _GIVEN
    if file.exists():
        try:
            same = json.loads(file.read_text()) == given
        except ValueError:  # also text that is not UTF-8
            raise LedgerError(f"{file} is damaged; give another --out") from None
        if not same:
            raise LedgerError(f"{out} has a comparison of other --data; give the same, or another --out")
        cache = open_cache(folder / "cache")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        cache = gather(data, folder, config, clients)
        write_atomically(file, json.dumps(given, indent=1).encode())
    if not validation:
        return cache
    share = config.data.test_share
    name = folder / f"validation-{share:g}"
    return open_cache(name) if name.exists() else without_test(cache, share, name)


def without_test(cache: Cache, test_share: float, folder: Path) -> Cache:
    """Write a cache without the patients that are set aside, and return it.

    A patient group with any image set aside is left out whole. The `split` of the others is stretched from
    `test_share`..1 to 0..1.

    Raises:
        CacheError: nobody is left.
    """
    groups = cache.index["group"].to_numpy()
    rows = np.flatnonzero(~np.isin(groups, groups[cache.held_out(test_share)]))
    if not len(rows):
        raise CacheError(f"{cache.folder}: data.test_share={test_share:g} leaves no patient to validate on")
    index = cache.index.iloc[rows].reset_index(drop=True)
    index["split"] = (index["split"] - test_share) / (1 - test_share)
    summary: dict[str, Any] = {key: value for key, value in cache.summary.items() if key != VIEWED}
    summary |= {"images": len(rows)}
    masks = None if cache.masks is None else (cache.masks[row] for row in rows)
    return write_copy(folder, index, summary, cache.size, (cache.images[row] for row in rows), masks)
