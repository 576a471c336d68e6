"""The interface of a stage of a federation, so that no other module compares stage names."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from sscxr import seeds
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.models import checkpoint
from sscxr.models import encoder as encoders
from sscxr.runs import Words
from sscxr.training.moments import Moments
from sscxr.training.optim import Schedule
from sscxr.training.parts import Parts, split
from sscxr.training.site_model import Training as Training

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

log = logging.getLogger(__name__)


class Stage(ABC):
    """A stage under the settings of one run.

    Attributes:
        config: the run's settings.
        figure: the site's figure on held-out images, "auroc" or "dice"; empty: none.
        averages_head: whether the part on top of the encoder is averaged if the settings do not decide it.
    """

    figure: ClassVar[str] = ""
    averages_head: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def shares_head(self) -> bool:
        """Return whether the part on top of the encoder is averaged too."""
        chosen = self.config.federation.share_head
        return self.averages_head if chosen is None else chosen

    @property
    def labels(self) -> Sequence[str]:
        """Return the labels that the stage reads."""
        return ()

    @property
    def pooling(self) -> str:
        """Return how the released encoder pools: "avg", the mean of the patches, or "token", the class token."""
        return "avg"

    @property
    @abstractmethod
    def coupling(self) -> str:
        """Return why an image's gradient depends on other images, which rules out privacy; empty: it does not."""

    @property
    @abstractmethod
    def words(self) -> Words:
        """Return the names of the stage, its loss and its score in reports and on cards."""

    @property
    @abstractmethod
    def learns(self) -> str:
        """What the stage learns, for the hospital that approves it."""

    def problem(self) -> str:
        """Return one line on what the settings lack; empty: nothing."""
        return ""

    def missing(self, cache: Cache) -> str:
        """Return one line on labels or masks that the stage needs and no image has; empty: nothing."""
        return ""

    def start(self) -> dict[str, Tensor]:
        """Return the tensors of the first round: those of `parts`, its encoder loaded from `encoder.start` if set.

        Raises:
            SscxrError: the start cannot be read, or does not fit; one line states why.
        """
        begun = self.parts()
        if self.config.encoder.start:
            from sscxr.release import shipped  # pretraining from scratch does not need it

            encoder = cast("VisionTransformer", begun.encoder)
            place = shipped.place(self.config.encoder.start)
            if place.is_dir() and not checkpoint.is_from_a_hub(place):
                from sscxr.finetuning import finetuned  # nor does a start from a checkpoint need this

                finetuned.load_encoder(encoder, place)
            else:
                for note in checkpoint.load_start(encoder, place):
                    log.warning("%s: %s", place, note)
        return {name: tensor.clone() for name, tensor in self.shared(begun).items()}

    def shared(self, parts: Parts) -> dict[str, Tensor]:
        """Return the tensors that are averaged, before the first step."""
        return parts.shared() | Moments(self.config.moments, self.config.optimiser, parts).shared()

    def schedule(self) -> Schedule:
        """Return the run's schedule of learning rate and weight decay."""
        return Schedule.of(self.config.learning)

    @abstractmethod
    def encoder_args(self) -> dict[str, Any]:
        """Return timm's arguments for the encoder, besides its name; see `encoder.model_args`."""

    def encoder(self, shared: Mapping[str, Tensor]) -> "VisionTransformer":
        """Return the run's encoder with the averaged tensors."""
        with seeds.forked(self.config.run.seed, "encoder"):
            built = encoders.build(self.config.encoder.name, **self.encoder_args(), pooling=self.pooling)
        built.load_state_dict(split(shared)[0])
        return built

    @abstractmethod
    def parts(self) -> Parts:
        """Return the model, initialised from the run's seed alone; `start` loads `encoder.start` into it."""

    @abstractmethod
    def training(self, device: torch.device, cache: Cache, rows: Rows, *, blank: bool = False) -> Training:
        """Return the training of a site on these rows.

        Args:
            blank: whether the weights may be left unset, because the caller loads all of them next.
        """

    @abstractmethod
    def usable(self, cache: Cache, rows: Rows) -> Rows:
        """Return the rows that the stage can learn from."""

    @abstractmethod
    def tellable(self, cache: Cache, rows: Rows, minimum: int) -> bool:
        """Return whether a site may report figures of these rows: none is about fewer than `minimum` patients."""

    def save_model(
        self, shared: Mapping[str, Tensor], folder: Path, *, extra: Mapping[str, str] | None = None
    ) -> Path:
        """Write the model that a run ends with besides its encoder, and return its folder; by default nothing.

        Args:
            shared: the averaged tensors, those of the head included.
            extra: further files, as name and text.
        """
        return folder
