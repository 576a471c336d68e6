"""Results of probes on a trained and an untrained encoder, without the code that measures them."""

from dataclasses import dataclass

KINDS = ("linear", "k-NN")  # of probes


@dataclass(frozen=True)
class Probe:
    """How well one encoder's features predict one label, on patients that were never trained on.

    Attributes:
        label, cohort: the task.
        kind: "linear" or "k-NN".
        auroc, low, high: AUROC on the test images and its 95 % bootstrap interval over patients.
        train_images, train_positives: numbers that the probe was fitted on.
        test_images, test_positives, test_patients: numbers that it was tested on.
    """

    label: str
    cohort: str
    kind: str
    auroc: float
    low: float
    high: float
    train_images: int
    train_positives: int
    test_images: int
    test_positives: int
    test_patients: int


@dataclass(frozen=True)
class Comparison:
    """The same probe on a trained and on an untrained encoder.

    Attributes:
        trained, untrained: the two probes, of one task and kind.
        gain, low, high: trained minus untrained AUROC and its 95 % paired bootstrap interval over patients.
    """

    trained: Probe
    untrained: Probe
    gain: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Return whether the interval of the trained encoder's gain is above 0."""
        return self.low > 0
