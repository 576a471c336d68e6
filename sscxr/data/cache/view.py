"""Views: a cache as of one moment, for work that outlasts a process; `cache.open_cache` opens a view as well.

A view has the index but not the pixels: `prepare` leaves the images of earlier rows unchanged and appends.
"""

import json
from pathlib import Path

from sscxr.data.cache import columns
from sscxr.data.cache.cache import VIEWED, Cache, open_cache
from sscxr.data.cache.tables import unusable
from sscxr.files import whole_folder


def write(cache: Cache, folder: Path) -> Cache:
    """Write a view of a cache into a new folder, readable by its owner alone, and open it.

    Raises:
        CacheError: the cache has changed since it was opened, and images are missing.
        OSError: the view cannot be written.
    """
    about = {VIEWED: str(cache.folder.resolve()), "images": len(cache), "masks": int(cache.masks is not None)}
    summary = cache.summary | about | {"unusable": unusable(cache)}
    with whole_folder(folder, 0o700) as fresh:
        (fresh / columns.INDEX).write_bytes(cache.text[:])
        columns.write(fresh, cache.index)
        (fresh / "summary.json").write_text(json.dumps(summary, indent=1))
    return open_cache(folder)
