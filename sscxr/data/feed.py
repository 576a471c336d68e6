"""Feeds batches of cached images to the device: the next one is read while this one is trained on."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sscxr.data.rows import Rows


def feed(
    images: npt.NDArray[np.uint8], batches: Iterable[Rows], device: torch.device
) -> Iterator[tuple[Tensor, Rows]]:
    """Yield the images of each batch of rows, uint8 [B, S, S] on the device, and the rows; in order.

    A thread gathers the next batch from the memory map, waiting for the disk if necessary. On CUDA it gathers
    into pinned memory, and the copy to the device runs on its own stream beside the training's.

    Args:
        images: uint8 [N, S, S], memory-mapped.
    """
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def gather(rows: Rows) -> tuple[Tensor, torch.cuda.Event | None]:
        batch = torch.from_numpy(images[rows])
        if copying is None:
            return batch.to(device), None
        pinned = batch.pin_memory()
        with torch.cuda.stream(copying):
            # torch keeps the pinned memory until the copy is done.
            return pinned.to(device, non_blocking=True), copying.record_event()

    def arrived(batch: Tensor, copied: torch.cuda.Event | None) -> Tensor:
        if copied is not None:
            training = torch.cuda.current_stream(device)
            training.wait_event(copied)
            batch.record_stream(training)  # its memory is not reused before the training has read it
        return batch

    waiting = iter(batches)
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as reader:
        rows = next(waiting, None)
        coming = None if rows is None else reader.submit(gather, rows)
        while coming is not None and rows is not None:
            here, (batch, copied) = rows, coming.result()
            rows = next(waiting, None)
            coming = None if rows is None else reader.submit(gather, rows)
            yield arrived(batch, copied), here
