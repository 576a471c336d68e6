"""Fine-tuning a lung segmenter (UNETR) on masks."""

from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.evaluation import segmentation
from sscxr.finetuning.segment import KIND
from sscxr.runs import Words
from sscxr.stages.tuning import FineTuning


class Segmenting(FineTuning):
    """Each site learns from its images with a mask, and reports the mean Dice coefficient."""

    figure = "dice"
    coupling = ""
    learns = "to outline the lungs (masks are used)"
    words = Words(
        kind="Federated fine-tuning of a lung segmenter",
        made="fine-tuned with masks of the lungs, as part of a segmenter",
        axis="loss (Dice + cross-entropy)",
        meaning="Loss: one minus the soft Dice, and the mean cross-entropy of the pixels. Lower is better.",
        score=KIND.score,
        task=True,
    )

    def missing(self, cache: Cache) -> str:
        """Return one line if no image has a mask."""
        if (cache.index["has_mask"] == 1).any():
            return ""
        return "run.stage=segment: no image of the data has a lung mask; prepare it with masks"

    def usable(self, cache: Cache, rows: Rows) -> Rows:
        """Return the rows with a mask that fits its image."""
        masked = rows[(cache.index["has_mask"] == 1).to_numpy()[rows]]
        return segmentation.masked(cache, masked) if len(masked) else masked

    def tellable(self, cache: Cache, rows: Rows, minimum: int) -> bool:
        """Return whether the rows are at least the minimum."""
        return len(rows) >= minimum


STAGE = Segmenting
