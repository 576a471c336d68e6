"""Small site caches, written file by file as the contract in `sscxr/data/cache/cache.py` says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sscxr.data.cache.cache import FORMAT_VERSION, INDEX_COLUMNS, TEXT_COLUMNS, Cache, open_cache


def make_cache(folder: Path, images: npt.NDArray[np.uint8], index: dict[str, Any] | pd.DataFrame) -> Cache:
    """Write a cache and open it.

    Args:
        folder: made where it is absent.
        images: uint8 [N, S, S].
        index: the columns that matter to the test (`group`, `source`, `split`, `label:NAME` ...); a group of
            its own for each image, source "a", split 1 and empty cells where they do not.
    """
    count, size = len(images), images.shape[1]
    index = pd.DataFrame(index, index=range(count))
    defaults: dict[str, Any] = {name: "" if name in TEXT_COLUMNS else 0 for name in INDEX_COLUMNS}
    numbers = [f"{number:016x}" for number in range(count)]
    defaults |= {"image": numbers, "group": numbers, "source": "a", "view": "PA", "split": 1.0}
    defaults |= {"height": size, "width": size, "content_height": size, "content_width": size}
    for name, value in defaults.items():
        if name not in index:
            index[name] = value
    labels = [name for name in index.columns if name not in INDEX_COLUMNS]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", images)
    index[[*INDEX_COLUMNS, *labels]].to_csv(folder / "index.csv", index=False)
    summary = {"format_version": FORMAT_VERSION, "images": count, "sources": sorted(set(index["source"]))}
    (folder / "summary.json").write_text(json.dumps(summary))
    return open_cache(folder)
