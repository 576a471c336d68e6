"""Images by their features: a table of features, and the images of a cache that are nearest to another.

The feature is the mean of the patch tokens after the final norm, as in the probes, and also for a fine-tuned
model, whatever its head pools.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from sklearn.preprocessing import StandardScaler, normalize
from torch import nn

from sscxr import config as configs
from sscxr import seeds
from sscxr.data.cache import sheet
from sscxr.data.cache.cache import LABEL_PREFIX, Cache, open_cache
from sscxr.finetuning import finetuned, judge
from sscxr.models import encoder as encoders
from sscxr.models import inference
from sscxr.models.inference import Input
from sscxr.predict import reading
from sscxr.predict.reading import Read, ReadingError
from sscxr.release import fetch
from sscxr.training.device import set_up

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Embedder:
    """A loaded encoder.

    Attributes:
        encoder: a timm ViT of one input channel.
        input: the form of its input.
        cache_size: px a side of the squares to which files are scaled.
    """

    encoder: nn.Module
    input: Input
    cache_size: int

    def features(self, images: npt.NDArray[np.uint8]) -> Features:
        """Return features float32 [N, D] of images uint8 [N, S, S]."""
        return inference.features(self.encoder, images, wants=self.input)


def open_embedder(source: str) -> Embedder:
    """Load the encoder of a fine-tuned model, or a released one.

    Args:
        source: the folder of either, or the address of a release.

    Raises:
        FinetunedError, ReleaseError, FetchError, SigningError: one line states why the encoder cannot be used.
    """
    if finetuned.is_model(Path(source)):
        opened = judge.open_model(source)
        return Embedder(cast(nn.Module, opened.model.encoder), opened.input, opened.cache_size)
    folder = fetch.located(source)
    settings = configs.load("default", [*finetuned.encoder_settings(folder), "run.deterministic=false"])
    device, about, data = set_up(settings), settings.encoder, settings.data
    with seeds.forked(0):
        encoder = encoders.build(about.name, **encoders.args_of(about))
    finetuned.load_encoder(encoder, folder)
    taken = Input(about.img_size, data.mean, data.std, device=device)
    return Embedder(encoder, taken, max(data.cache_size, about.img_size))


def embed_cache(embedder: Embedder, cache: Cache) -> pd.DataFrame:
    """Return features of all images of a cache, in its order: columns image (the index's hash), f0, f1, ..."""
    table = _table(embedder.features(cache.images))
    table.insert(0, "image", cache.index["image"].to_numpy())
    return table


def embed_files(embedder: Embedder, paths: Sequence[Path]) -> tuple[pd.DataFrame, list[Read]]:
    """Return features of files (columns file, f0, f1, ...), and the files that cannot be used.

    Raises:
        ReadingError: no file can be used.
    """
    rows, names, failed = [], [], []
    for read in reading.read(reading.files(paths), size=embedder.cache_size):
        if read.prepared is None:
            failed.append(read)
            continue
        rows.append(embedder.features(read.prepared.image[None])[0])
        names.append(str(read.file))
    if not rows:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise ReadingError(f"no file can be used: {failed[0].file}: {failed[0].problem}{more}")
    table = _table(np.stack(rows))
    table.insert(0, "file", names)
    return table, failed


def similar(
    embedder: Embedder, image: Path, cache_folder: Path, *, number: int
) -> tuple[pd.DataFrame, Image.Image]:
    """Find the images of a cache that are nearest to a file, by cosine of features standardised over the cache.

    Without standardising, the features common to all chest X-rays make every cosine nearly 1.

    Args:
        image: a DICOM, PNG or JPEG file.
        number: the most images to find.

    Returns:
        One row per image, nearest first: `cosine`, `row` of the cache, `image` (its hash), `source`, `view`,
        `labels` (those it is known to have); and a contact sheet that begins with the file.

    Raises:
        ReadingError, CacheError: the file or the cache cannot be used.
    """
    cache = open_cache(cache_folder)
    if image.is_dir():
        raise ReadingError(f"{image} is a folder; name one file")
    read = next(reading.read(reading.files([image]), size=cache.size))
    if read.prepared is None:
        raise ReadingError(f"{read.file}: {read.problem}")
    of_cache, of_image = embedder.features(cache.images), embedder.features(read.prepared.image[None])
    scaler = StandardScaler().fit(of_cache.astype(np.float64))
    units = [normalize(scaler.transform(one.astype(np.float64))) for one in (of_cache, of_image)]
    cosines = units[0] @ units[1][0]
    nearest = np.argsort(-cosines, kind="stable")[:number]
    index = cache.index.iloc[nearest]
    found = pd.DataFrame(
        {
            "cosine": cosines[nearest],
            "row": nearest,
            "image": index["image"].to_numpy(),
            "source": index["source"].to_numpy(),
            "view": index["view"].to_numpy(),
            "labels": [
                ", ".join(name for name in cache.labels if row[LABEL_PREFIX + name] == 1)
                for _, row in index.iterrows()
            ],
        }
    )
    captions = [
        f"{cosine:.2f} {source}" for cosine, source in zip(found["cosine"], found["source"], strict=True)
    ]
    squares = np.concatenate([read.prepared.image[None], cache.images[nearest]])
    return found, sheet.draw(squares, ["the file", *(caption[:20] for caption in captions)])


def _table(features: Features) -> pd.DataFrame:
    return pd.DataFrame(features, columns=[f"f{number}" for number in range(features.shape[1])])
