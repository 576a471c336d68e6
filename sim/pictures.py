"""Pictures of a simulation, which has images: reconstructions over the rounds, and a map of images.

Both are written to the run's folder, and the report reads them there.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import safetensors.torch
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn

from client.site import StateStore
from server.app import Hooks
from server.rounds import Listener
from sscxr import printable, seeds, stages
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.evaluation.tasks import HEALTHY
from sscxr.files import write_atomically
from sscxr.models import inference
from sscxr.objectives.base import Pictured
from sscxr.report import pictures, record
from sscxr.stages.pretrain import SiteTraining, whole
from sscxr.training.device import set_up

_SHOWN = 6  # held-out images
_PLACED = 1000  # images on the map: more would hide each other
_LABELS = 5  # labels with their own colour on the map
_PERPLEXITY = 30.0  # t-SNE's usual number of neighbours (van der Maaten and Hinton 2008: 5 to 50)

log = logging.getLogger("sscxr.sim")


@contextmanager
def guarded() -> Iterator[None]:
    """Log an error of a picture and continue: the rounds matter more."""
    try:
        yield
    except Exception as error:  # a full disk, a font, a defect
        log.warning("a picture for the report was not drawn (%s: %s)", type(error).__name__, error)


def follow(cache: Cache, config: Config, out: Path) -> None:
    """Keep pictures of a pretraining from now on; the code that set the first listener ends it."""

    def show_of(number: int) -> None:
        with guarded():
            show(cache, config, out, number)

    if config.pretrains:
        shown = Listener(
            # Before a round, too: a run may have been killed between its last commit and the picture of it.
            started=lambda done, attempt, sites: show_of(done),
            committed=lambda record: show_of(record["round"]),
        )
        Hooks.listener = (Hooks.listener or Listener()).also(shown)


def is_shown(number: int, rounds: int) -> bool:
    """Return whether a round, from 1, is pictured: powers of two, as learning is fastest at first, and the last."""
    return number == rounds or (number > 0 and number & (number - 1) == 0)


def show(cache: Cache, config: Config, out: Path, number: int) -> None:
    """Keep the pictures of a round, if it is to be pictured and they are not there yet."""
    folder = out / pictures.FOLDER
    if is_shown(number, config.federation.rounds) and not pictures.has(folder, _name(number)):
        _add(folder, cache, config, out, number)


def _name(number: int) -> str:
    return f"round-{number:05d}"


@torch.no_grad()
def _add(folder: Path, cache: Cache, config: Config, out: Path, number: int) -> None:
    """Keep reconstructions of held-out images, by a round's encoder and the head of the largest site."""
    rows = cache.rows(laterals=config.data.laterals)
    rows = rows[cache.held_out(config.data.test_share)[rows]]
    if not len(rows):
        return
    rows = _spread(rows, _SHOWN)
    checkpoint = out / "checkpoints" / _name(number)
    state = json.loads((checkpoint / "state.json").read_text())
    images = state["images"] or dict.fromkeys(state["bases"], 0)  # not known in a secure sum
    site = max(images, key=lambda name: (images[name], name))
    training = SiteTraining(config, set_up(config), cache, share_head=stages.of(config).shares_head)
    training.parts.load_shared(safetensors.torch.load_file(checkpoint / "encoder.safetensors"))
    # A head that is not averaged never leaves its site's folder, which a simulation can read.
    tensors, _ = StateStore(out / "sites" / site / "state").load(
        config.run.name, state["bases"].get(site, "")
    )
    if tensors is None:
        return
    training.load_local(tensors)
    objective = training.objective.eval()
    if not isinstance(objective, Pictured):
        return
    clean = whole(torch.from_numpy(cache.images[rows]).to(training.device), config)
    corrupted, made = objective.pictures(clean, seeds.generator(training.device, config.run.seed, "report"))
    pictures.add(folder, "0-clean", "clean", _grey(clean, config))
    pictures.add(folder, "1-corrupted", "corrupted, as the encoder gets them", _grey(corrupted, config))
    head = "the shared head" if training.parts.share_head else f"the head of {site}"
    pictures.add(folder, _name(number), f"reconstructed after round {number}, by {head}", _grey(made, config))


def _grey(images: Tensor, config: Config) -> npt.NDArray[np.uint8]:
    levels = images[:, 0].float() * config.data.std + config.data.mean
    grey: npt.NDArray[np.uint8] = (levels.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return grey


def place(encoder: nn.Module, cache: Cache, out: Path, config: Config, sites: Sequence[str]) -> None:
    """Write `embedding.csv`: images of every site on a plane, by t-SNE of the encoder's features."""
    rows, homes = _of_sites(cache, out, config, sites)
    if len(rows) < 3:
        return
    size, data = config.encoder.img_size, config.data
    wants = inference.Input(size, data.mean, data.std, config.probe.batch_size, set_up(config))
    found = inference.features(encoder, cache.images, rows, wants=wants)
    table = pd.DataFrame(plane(found, config.run.seed), columns=["x", "y"]).round(2)
    table["site"], table["label"] = homes, kinds(cache, rows)
    write_atomically(out / record.EMBEDDING, printable.frame(table, index=False).encode())


def plane(features: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float64]:
    """Map features [N, D] to places [N, 2]: PCA to 30 dimensions, then t-SNE; deterministic."""
    scaled = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    with threadpool_limits(1):
        few = PCA(min(30, *scaled.shape), svd_solver="full").fit_transform(scaled.astype(np.float64))
        perplexity = min(_PERPLEXITY, (len(few) - 1) / 3)
        t_sne = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
        places: npt.NDArray[np.float64] = t_sne.fit_transform(few)
    return places


def _of_sites(cache: Cache, out: Path, config: Config, sites: Sequence[str]) -> tuple[Rows, list[str]]:
    """Return equally many rows of each site, and each row's site."""
    usable = cache.rows(laterals=config.data.laterals)
    rows, homes = [], []
    for name in sites:
        mine = cache.index["group"].isin((out / "sites" / name / "groups.txt").read_text().split()).to_numpy()
        own = _spread(usable[mine[usable]], max(3, _PLACED // len(sites)))
        rows.append(own)
        homes += [name] * len(own)
    return np.concatenate(rows), homes


def kinds(cache: Cache, rows: Rows) -> list[str]:
    """Return one word per image for the map: the rarest of its frequent findings, none of them, or unknown."""
    index, labels = cache.index.iloc[rows], [name for name in cache.labels if name.lower() not in HEALTHY]
    columns = {name: index[f"label:{name}"].to_numpy(dtype=float) for name in labels}
    table = pd.DataFrame(columns, index=range(len(rows)))  # the index: rows even without labels
    frequent = (table == 1).sum().sort_values(ascending=False, kind="stable")
    frequent = frequent[frequent > 0].head(_LABELS)
    found = np.where(table.isna().all(axis=1), "unknown", "none of these").astype(object)
    for name in frequent.index:  # the rarest last, since it is the most specific
        found[(table[name] == 1).to_numpy()] = name
    return [str(word) for word in found]


def _spread(rows: Rows, most: int) -> Rows:
    """Return at most `most` rows, evenly spaced."""
    if not len(rows):
        return rows
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64)]
