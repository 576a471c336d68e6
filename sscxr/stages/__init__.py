"""The stages that a federation trains, each in the module of its name."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import cast

from sscxr import config as configs
from sscxr.config import Config, ConfigError
from sscxr.files import expanded
from sscxr.stages.base import Stage


def of(config: Config) -> Stage:
    """Return the stage of a run.

    Raises:
        ConfigError: a method's own setting cannot be used, or not with differential privacy.
    """
    # Imported when used, so that a pretraining site does not import fine-tuning at every message.
    stage = cast(Stage, import_module(f"sscxr.stages.{config.run.stage}").STAGE(config))
    if config.privacy.noise and (reason := stage.coupling):
        raise ConfigError(f"privacy.noise={config.privacy.noise:g}: {reason}")
    return stage


def load_config(
    file: str | Path = "default", overrides: Sequence[str] = (), *, foreign: bool = False
) -> Config:
    """Return a run's settings; a fine-tuning from a released encoder's folder gets that encoder's sizes.

    Raises:
        ConfigError, FinetunedError, ShippedError: see `config.load`; `encoder.start` is not a released encoder.
    """
    config = configs.load(file, overrides, foreign=foreign)
    if not config.pretrains and config.encoder.start:
        from sscxr.finetuning import finetuned
        from sscxr.release import shipped

        try:
            start = shipped.place(config.encoder.start)
        except (
            shipped.ShippedError
        ):  # of a stored run, which needs it no more; `Stage.start` reports it for others
            start = expanded(config.encoder.start)
        if start.is_dir():
            own = finetuned.encoder_settings(start)
            config = configs.load(file, [*overrides, *own], foreign=foreign)
    problem = of(config).problem()
    if problem:
        raise ConfigError(problem)
    return config
