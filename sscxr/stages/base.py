"""What each stage of a federation provides, so that no other module compares stage names."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.files import expanded
from sscxr.models import checkpoint
from sscxr.runs import Words
from sscxr.training.loop import HeldOut, Trained
from sscxr.training.optim import Schedule
from sscxr.training.parts import Parts

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

log = logging.getLogger(__name__)


class Training(Protocol):
    """What trains at a site: a model of two parts and its optimiser."""

    parts: Parts

    def load_local(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `local` returned after an earlier round."""

    def local(self) -> dict[str, Tensor]:
        """Return what stays at the site between rounds, on the CPU."""

    def train_round(
        self,
        rows: Rows,
        *,
        site: str,
        round_number: int,
        budget: float,
        on_step: Callable[[int, int, float], None] | None = None,
    ) -> Trained:
        """Train for one round's local epochs, for at most `budget` seconds."""

    def held_out(self, rows: Rows, *, site: str) -> HeldOut:
        """Measure the model on images that are never trained on."""


class Stage(ABC):
    """A stage under the settings of one run.

    Attributes:
        config: the run's settings.
        figure: the site's figure on held-out images, "auroc" or "dice"; empty: there is none.
        averages_head: whether what is on top of the encoder is averaged where the settings leave it open.
        makes_model: whether a run ends with a model besides the encoder.
    """

    figure: ClassVar[str] = ""
    averages_head: ClassVar[bool] = True
    makes_model: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def shares_head(self) -> bool:
        """Whether what is on top of the encoder is averaged too."""
        chosen = self.config.federation.share_head
        return self.averages_head if chosen is None else chosen

    @property
    def labels(self) -> Sequence[str]:
        """The labels that the stage reads."""
        return ()

    @property
    def pooling(self) -> str:
        """How the released encoder pools its tokens: "avg", the patches' mean, or "token", the class token."""
        return "avg"

    @property
    @abstractmethod
    def words(self) -> Words:
        """What the stage, its loss and its score are called in reports and on cards."""

    def problem(self) -> str:
        """Return what the settings lack, in one line; empty: nothing."""
        return ""

    def missing(self, cache: Cache) -> str:
        """Return what no image of a cache has and the stage cannot learn without, in one line; empty: nothing."""
        return ""

    def start(self) -> dict[str, Tensor]:
        """Return what the server sends in the first round: `parts`, its encoder loaded from `encoder.start` if set.

        Raises:
            EncoderError, FinetunedError, ReleaseError, SigningError: a start that cannot be read, or does not fit.
        """
        begun = self.parts()
        if self.config.encoder.start:
            encoder = cast("VisionTransformer", begun.encoder)
            place = expanded(self.config.encoder.start)
            if place.is_dir() and not checkpoint.is_from_a_hub(place):
                from sscxr.finetuning import finetuned  # pretraining from scratch need not wait for it

                finetuned.load_encoder(encoder, place)
            else:
                for note in checkpoint.load_start(encoder, place):
                    log.warning("%s: %s", place, note)
        return {name: tensor.clone() for name, tensor in begun.shared().items()}

    @abstractmethod
    def schedule(self) -> Schedule:
        """Return the run's schedule of learning rate and weight decay."""

    @abstractmethod
    def encoder_args(self) -> dict[str, Any]:
        """Return what timm needs, beside the encoder's name, to build it; see `encoder.model_args`."""

    @abstractmethod
    def parts(self) -> Parts:
        """Return the model, drawn from the run's seed alone; `start` loads `encoder.start` into it."""

    @abstractmethod
    def training(self, device: torch.device, cache: Cache, rows: Rows, *, blank: bool = False) -> Training:
        """Return what trains at a site on these rows.

        Args:
            blank: whether the weights may be left unset, as the caller loads the shared and the local ones next.
        """

    @abstractmethod
    def usable(self, cache: Cache, rows: Rows) -> Rows:
        """Return those rows that the stage can learn from."""

    @abstractmethod
    def tellable(self, cache: Cache, rows: Rows, minimum: int) -> bool:
        """Return whether a site may report figures of these held-out rows."""

    def save_model(
        self, shared: Mapping[str, Tensor], folder: Path, *, extra: Mapping[str, str] | None = None
    ) -> Path:
        """Write the model, head and all, as `sscxr finetune` does.

        Args:
            shared: the averaged tensors, those of the head included.
            extra: further files, as name and text.
        """
        raise NotImplementedError(f"{self.config.run.stage} makes no model")
