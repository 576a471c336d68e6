"""A site trains by itself, for comparison: the run's recipe, start, schedule and views, without the others.

Nothing leaves the site. What has been trained is kept in one file, from which an interrupted training continues to
the same bytes.
"""

import copy
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from client.settings import SiteError, limit_memory, read_settings
from client.site import Site
from sscxr import config as configs
from sscxr import stages
from sscxr.config import Config
from sscxr.federation import approval
from sscxr.federation.join import Join
from sscxr.files import locked, private_folder, settle
from sscxr.release.card import SiteData
from sscxr.stages.base import Training
from sscxr.training.device import set_up

_SHARED, _LOCAL = "shared.", "local."  # prefixes in the file
_FOLDER = "_alone"  # in a site's state; runs' names have no underscore in front
_EVERY = 60.0  # seconds of training that an interruption may cost

OnRound = Callable[[int, int, float], None]  # rounds done, rounds, the last one's loss


def by_itself(config: Config) -> Config:
    """Return a run's settings for a single site: nothing is aligned to an average, and the site steps itself."""
    own = copy.deepcopy(config)
    own.federation.align, own.federation.sends = 0.0, "update"
    return own


def train(
    site: Site, config: Config, file: Path, *, on_round: OnRound = lambda done, rounds, loss: None
) -> Training:
    """Train a site's model for as many rounds as a run has, from the run's start.

    Args:
        config: the run's settings.
        file: keeps the state; an earlier one is continued.
        on_round: called after each round.

    Returns:
        The trained model.

    Raises:
        SiteError: the site has no images that the stage can use; the file is of other settings, or damaged.
        NonFiniteLossError: the loss is not finite, at rates that suit an average.
    """
    config = by_itself(config)
    limit_memory(site.settings)
    config.run.device = site.settings.device or config.run.device
    device, stage = set_up(config), stages.of(config)
    rows, _ = site.own_rows(config)
    if not len(rows):
        raise SiteError("few images", f"{site.name} has no images that the stage {config.run.stage} can use")
    digest = _digest(config, site)
    done, shared, local = _read(file, digest)
    training = stage.training(device, site.cache, rows, blank=done > 0)
    if done:
        training.load_local(local)
    training.parts.load_shared(shared if done else stage.start())
    saved, rounds = monotonic(), config.federation.rounds
    for number in range(done, rounds):
        trained = training.train_round(rows, site=site.name, round_number=number, budget=math.inf)
        if number + 1 == rounds or monotonic() - saved > _EVERY:
            _write(file, digest, number + 1, training)
            saved = monotonic()
        on_round(number + 1, rounds, trained.loss)
    return training


def at_home(file: Path, join: Path | None, out: Path | None, *, on_round: OnRound) -> Path:
    """Pretrain a hospital's own encoder by a federation's recipe, and return its folder.

    Args:
        file: the hospital's `site.yaml`.
        join: the federation's join file; None: the one that the settings name.
        out: the encoder's folder; None: `_alone/encoder` in the site's state.

    Raises:
        SiteError, JoinError, ConfigError: one line states what is wrong.
    """
    settings = read_settings(file)
    if join is None and not settings.join:
        raise SiteError("settings", f"{file} does not name a join file; give --join FILE")
    config = approval.settings_of(Join.read(join or Path(settings.join)).recipe)
    if not config.pretrains:
        raise SiteError(
            "settings",
            f"the federation's stage is {config.run.stage}; `sscxr finetune` trains that at one site",
        )
    site, folder = Site(settings), Path(settings.state) / _FOLDER
    private_folder(folder)
    with locked(folder / "lock", SiteError("settings", f"another process trains in {folder}")):
        training = train(site, config, folder / "trained.safetensors", on_round=on_round)
        return release(site, config, training, out or folder / "encoder")


def release(site: Site, config: Config, training: Training, folder: Path) -> Path:
    """Write the trained encoder as a run writes its own, and return its folder."""
    from sscxr.stages import publishing  # only a release needs it

    rows, _ = site.own_rows(config)
    patients = int(site.cache.index["group"].iloc[rows].nunique())
    config = by_itself(config)
    config.run.name = f"{config.run.name}-{site.name}-alone"[:64]
    return publishing.write(
        config,
        training.shared(),
        config.federation.rounds,
        folder,
        [SiteData(site.name, len(rows), patients)],
    )


def _digest(config: Config, site: Site) -> str:
    """Return what has to be the same for a training to be continued: the settings, and the images."""
    rows, _ = site.own_rows(config)
    images = "\n".join(site.cache.column("image")[rows].astype(str))
    return hashlib.sha256(f"{configs.dumps(config)}\n{site.name}\n{images}".encode()).hexdigest()


def _read(file: Path, digest: str) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
    """Return how many rounds are done, the tensors that a run would average, and the others."""
    if not file.exists():
        return 0, {}, {}
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            about = opened.metadata() or {}
        tensors = safetensors.torch.load_file(file)
        done = int(about["rounds"])
    except (OSError, safetensors.SafetensorError, LookupError, ValueError):
        raise SiteError("disk", f"{file} is damaged; delete it to train again from the start") from None
    if about.get("digest") != digest:
        raise SiteError(
            "settings", f"{file} was trained with other settings or images; delete it to train again"
        )
    each = ({}, {})  # type: tuple[dict[str, Tensor], dict[str, Tensor]]
    for name, tensor in tensors.items():
        shared = name.startswith(_SHARED)
        each[0 if shared else 1][name.removeprefix(_SHARED if shared else _LOCAL)] = tensor
    return done, *each


@torch.no_grad()
def _write(file: Path, digest: str, done: int, training: Training) -> None:
    private_folder(file.parent)
    tensors = {_SHARED + name: tensor for name, tensor in training.parts.shared().items()}
    tensors |= {_LOCAL + name: tensor for name, tensor in training.local().items()}
    partial = file.with_suffix(".tmp")
    whole = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
    safetensors.torch.save_file(whole, partial, metadata={"rounds": str(done), "digest": digest})
    settle(partial, file)
