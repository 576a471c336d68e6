"""Fine-tuning a classifier on the labels that `classify.labels` names."""

from collections.abc import Sequence

import numpy as np

from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.finetuning.classify import KIND
from sscxr.runs import Words
from sscxr.stages.tuning import FineTuning


class Classifying(FineTuning):
    """Each site learns from its images with a known label, and reports the mean AUROC."""

    figure = "auroc"
    words = Words(
        kind="Federated fine-tuning of a classifier",
        made="fine-tuned with labels, as part of a classifier",
        axis="loss (cross-entropy, nats)",
        meaning="Loss: mean cross-entropy of the known labels, both classes of each weighing the same. Lower is "
        "better.",
        score=KIND.score,
        task=True,
    )

    @property
    def pooling(self) -> str:
        """Return the classifier's pooling."""
        return "token" if self.config.classify.pool == "cls" else "avg"

    @property
    def coupling(self) -> str:
        """Return a line if the loss weighs an image by how many others have its label."""
        balanced = "classify.balance weighs each image by the labels of all; set classify.balance=false"
        return balanced if self.config.classify.balance else ""

    @property
    def labels(self) -> Sequence[str]:
        """Return `classify.labels`."""
        return self.config.classify.labels

    @property
    def learns(self) -> str:
        """Return the labels."""
        return f"to classify {', '.join(self.labels) or 'nothing'} (labels are used)"

    def problem(self) -> str:
        """Return one line if no label is named."""
        if self.labels:
            return ""
        return "classify.labels is empty: name the labels to predict, as in classify.labels=[pneumonia]"

    def missing(self, cache: Cache) -> str:
        """Return one line on the labels that no image has."""
        absent = [name for name in self.labels if name not in cache.labels]
        if not absent:
            return ""
        there = f"there are: {', '.join(cache.labels)}" if cache.labels else "no image has a label"
        return f"classify.labels: no image of the data is labelled {', '.join(absent)}; {there}"

    def usable(self, cache: Cache, rows: Rows) -> Rows:
        """Return the rows with a known label; a label that the cache lacks is unknown for every row."""
        known = np.zeros(len(cache), dtype=bool)
        for label in self._there(cache):
            known |= np.isfinite(cache.label(label))
        return rows[known[rows]]

    def tellable(self, cache: Cache, rows: Rows, minimum: int) -> bool:
        """Return whether each class of each label is empty, or of at least so many patients."""
        patients = cache.column("group")[rows]
        for label in self._there(cache):
            values = cache.label(label)[rows]
            if any(0 < len(set(patients[values == value])) < minimum for value in (0, 1)):
                return False
        return True

    def _there(self, cache: Cache) -> set[str]:
        return set(self.labels) & set(cache.labels)


STAGE = Classifying
