"""The stages that a federation trains, each in its own module, listed here."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import cast

from sscxr import config as configs
from sscxr.config import Config, ConfigError
from sscxr.files import expanded
from sscxr.stages.base import Stage

# By `run.stage`; imported when used, so that a pretraining site does not import fine-tuning at every message.
_STAGES = {
    "pretrain": "sscxr.stages.pretrain:Pretraining",
    "classify": "sscxr.stages.classify:Classifying",
    "segment": "sscxr.stages.segment:Segmenting",
}


def of(config: Config) -> Stage:
    """Return the stage of a run."""
    module, _, name = _STAGES[config.run.stage].partition(":")
    return cast(Stage, getattr(import_module(module), name)(config))


def load_config(
    file: str | Path = "default", overrides: Sequence[str] = (), *, foreign: bool = False
) -> Config:
    """Return a run's settings; a fine-tuning from a released encoder's folder gets that encoder's sizes.

    Raises:
        ConfigError, FinetunedError: see `config.load`; `encoder.start` is not a released encoder.
    """
    config = configs.load(file, overrides, foreign=foreign)
    start = expanded(config.encoder.start or "")
    if not config.pretrains and config.encoder.start and start.is_dir():
        from sscxr.finetuning import finetuned

        config = configs.load(file, [*overrides, *finetuned.encoder_settings(start)], foreign=foreign)
    problem = of(config).problem()
    if problem:
        raise ConfigError(problem)
    return config
