"""Writes a run's encoder, as its stage defines it, as a release with its model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

import sscxr
from sscxr import config as configs
from sscxr import stages
from sscxr.config import Config
from sscxr.evaluation.gains import Comparison
from sscxr.release import release
from sscxr.release.card import Card, SiteData


def write(
    config: Config,
    shared: Mapping[str, Tensor],
    rounds: int,
    folder: Path,
    data: Sequence[SiteData],
    *,
    probes: Sequence[Comparison] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write an encoder, and return its folder.

    Args:
        config: the settings that it was trained with.
        shared: the averaged tensors; those of the head and of moments are left out.
        rounds: that it has seen.
        data, probes, notes: for the model card, see `Card`.
    """
    stage = stages.of(config)
    return release.write_encoder(
        stage.encoder(shared),
        folder,
        architecture=config.encoder.name,
        model_args=stage.encoder_args(),
        mean=config.data.mean,
        std=config.data.std,
        card=Card(
            name=config.run.name,
            data=data,
            rounds=rounds,
            made=stage.words.made,
            settings=configs.dumps(config),
            code_version=sscxr.__version__,
            probes=probes,
            min_cell=config.privacy.min_cell,
            notes=notes,
        ),
    )
