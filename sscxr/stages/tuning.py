"""The common part of the fine-tuning stages: a classifier or a segmenter around the encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sscxr import config as configs
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.finetuning import finetuned, site_finetune
from sscxr.finetuning.site_finetune import SiteFineTuning
from sscxr.stages.base import Stage
from sscxr.training.parts import Parts


class FineTuning(Stage):
    """A task on labels or masks; the encoder learns as well, unless it is frozen."""

    def encoder_args(self) -> dict[str, Any]:
        """Return the encoder's arguments at the input size of the task."""
        return finetuned.spec_of(self.config).model_args

    def parts(self) -> Parts:
        """Return the encoder and the part on top of it."""
        return site_finetune.parts_of(site_finetune.build_model(self.config), share_head=self.shares_head)

    def training(
        self, device: torch.device, cache: Cache, rows: Rows, *, blank: bool = False
    ) -> SiteFineTuning:
        """Return the task's training; the rows' labels set its balance."""
        return SiteFineTuning(self.config, device, cache, rows, share_head=self.shares_head)

    def save_model(
        self, shared: Mapping[str, Tensor], folder: Path, *, extra: Mapping[str, str] | None = None
    ) -> Path:
        """Write the model, head and all, as `sscxr finetune` does."""
        model = site_finetune.build_model(self.config)
        site_finetune.parts_of(model, share_head=True).load_shared(shared)
        files = {finetuned.SETTINGS: configs.dumps(self.config)} | dict(extra or {})
        return finetuned.save(folder, model, finetuned.spec_of(self.config), extra=files, overwrite=True)
