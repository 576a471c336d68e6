"""The words by which tables and folders name the published part of an image: train, valid or test."""

import re
import unicodedata

TRAIN, VALID, TEST = "train", "valid", "test"
PARTS = {
    **dict.fromkeys(("train", "training", "trn", "tr", "trainval", "train val", "train valid"), TRAIN),
    **dict.fromkeys(("valid", "validation", "validate", "val", "dev", "tune", "tuning"), VALID),
    **dict.fromkeys(("internal validation",), VALID),
    **dict.fromkeys(("test", "testing", "tst", "te", "eval", "evaluation", "external validation"), TEST),
    **dict.fromkeys(("holdout", "hold out", "held out", "heldout"), TEST),
    **dict.fromkeys(("internal test", "internal testing", "external test", "external testing"), TEST),
}


def part_of(word: str) -> str | None:
    """Return the part that a word means, in any spelling; None for an unknown word.

    Case, `_` and `-`, a trailing number ("test2") and a trailing "set", "split", "data", "cohort" or "images" do
    not count.
    """
    plain = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", word).casefold()).strip()
    plain = re.sub(r"\s*\d+$", "", plain)
    plain = re.sub(
        r"(?:\s+|(?<=train)|(?<=test)|(?<=val)|(?<=ing))(?:set|sets|split|data|cohort|images)$", "", plain
    )
    return PARTS.get(plain)
