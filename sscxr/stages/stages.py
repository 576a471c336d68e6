"""The stages of a federation, in one place: what each begins with, learns from and trains.

Fine-tuning is imported where it is asked for: a site that pretrains need not wait for it at every message.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

from sscxr import config as configs
from sscxr.config import Config, ConfigError
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.files import expanded
from sscxr.models import checkpoint
from sscxr.models import encoder as encoders
from sscxr.stages import pretrain
from sscxr.stages.pretrain import SiteTraining
from sscxr.training import optim
from sscxr.training.parts import Parts

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from sscxr.finetuning.site_finetune import SiteFineTuning

    Training: TypeAlias = SiteTraining | SiteFineTuning

PRETRAIN = "pretrain"
log = logging.getLogger(__name__)


def load_config(
    file: str | Path = "default", overrides: Sequence[str] = (), *, foreign: bool = False
) -> Config:
    """A run's settings; a fine-tuning from a released encoder's folder (`encoder.start`) has that encoder's sizes.

    Raises:
        ConfigError, FinetunedError: see `config.load`; no released encoder there.
    """
    config = configs.load(file, overrides, foreign=foreign)
    start = expanded(config.encoder.start or "")
    if config.run.stage != PRETRAIN and config.encoder.start and start.is_dir():
        from sscxr.finetuning import finetuned

        config = configs.load(file, [*overrides, *finetuned.encoder_settings(start)], foreign=foreign)
    if config.run.stage == "classify" and not config.classify.labels:
        raise ConfigError(
            "classify.labels is empty: name the labels to tell, as in classify.labels=[pneumonia]"
        )
    return config


def shares_head(config: Config) -> bool:
    """Whether what is on top of the encoder is averaged too: as set, else in fine-tuning."""
    chosen = config.federation.share_head
    return config.run.stage != PRETRAIN if chosen is None else chosen


def batch_size(config: Config) -> int:
    """Images a step."""
    return config.pretrain.batch_size if config.run.stage == PRETRAIN else config.finetune.batch_size


def schedule(config: Config) -> optim.Schedule:
    """The run's learning-rate and weight-decay schedule."""
    if config.run.stage == PRETRAIN:
        return pretrain.schedule(config)
    from sscxr.finetuning import finetune

    return finetune.schedule(config.finetune)


def encoder_args(config: Config) -> dict[str, Any]:
    """What, beside its name, tells timm to build the encoder as the stage trains it; see `encoder.model_args`."""
    if config.run.stage == PRETRAIN:
        settings = config.encoder
        return encoders.model_args(
            img_size=settings.img_size,
            patch_size=settings.patch_size,
            in_chans=settings.in_chans,
            depth=settings.depth,
        )
    from sscxr.finetuning import finetuned

    return finetuned.spec_of(config).model_args


def parts(config: Config) -> Parts:
    """The stage's model from the run's seed alone, alike everywhere; `start` loads `encoder.start` into it."""
    if config.run.stage == PRETRAIN:
        objective = pretrain.build_objective(config)
        return Parts(objective.encoder, objective.head, share_head=shares_head(config))
    from sscxr.finetuning import site_finetune

    return site_finetune.parts_of(site_finetune.build_model(config), share_head=shares_head(config))


def start(config: Config) -> dict[str, Tensor]:
    """What the server sends in the first round: `parts`, with the encoder of `encoder.start` where it names one.

    Raises:
        EncoderError, FinetunedError, ReleaseError, SigningError: one that cannot be read, or does not fit.
    """
    begun = parts(config)
    if config.encoder.start:
        encoder, place = cast("VisionTransformer", begun.encoder), expanded(config.encoder.start)
        if place.is_dir() and not checkpoint.is_from_a_hub(place):
            from sscxr.finetuning import finetuned

            finetuned.load_encoder(encoder, place)
        else:
            for note in checkpoint.load_start(encoder, place):
                log.warning("%s: %s", place, note)
    return {name: tensor.clone() for name, tensor in begun.shared().items()}


def site_training(
    config: Config, device: torch.device, cache: Cache, rows: Rows, *, blank: bool = False
) -> "Training":
    """What trains at a site, on these rows; `blank`: what is shared and what is local are loaded next."""
    if config.run.stage == PRETRAIN:
        return SiteTraining(config, device, cache, share_head=shares_head(config), blank=blank)
    from sscxr.finetuning.site_finetune import SiteFineTuning

    return SiteFineTuning(config, device, cache, rows, share_head=shares_head(config))


def save_model(
    config: Config, shared: Mapping[str, Tensor], folder: Path, *, extra: Mapping[str, str] | None = None
) -> Path:
    """Write what a federated fine-tuning made, head and all, as `sscxr finetune` writes a model."""
    from sscxr.finetuning import finetuned, site_finetune

    model = site_finetune.build_model(config)
    site_finetune.parts_of(model, share_head=True).load_shared(shared)
    files = {finetuned.SETTINGS: configs.dumps(config)} | dict(extra or {})
    return finetuned.save(folder, model, finetuned.spec_of(config), extra=files, overwrite=True)


def usable(cache: Cache, rows: Rows, config: Config) -> Rows:
    """Those of some rows that the stage can learn from."""
    if config.run.stage == PRETRAIN:
        return rows
    from sscxr.finetuning import site_finetune

    return site_finetune.usable(cache, rows, config)


def tellable(cache: Cache, rows: Rows, config: Config, minimum: int) -> bool:
    """Whether figures of held-out rows may leave a site."""
    if config.run.stage == PRETRAIN:
        return True
    from sscxr.finetuning import site_finetune

    return site_finetune.tellable(cache, rows, config, minimum)
