"""The masks and boxes of a corpus lie where its images show what they name; raw pixels are the right way round."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sscxr.data import corpora
from sscxr.data.corpora import rle
from sscxr.data.prepare.prepare import prepare


def test_siim_boxes_are_those_of_the_masks_that_torchxrayvision_decodes(corpus) -> None:  # type: ignore[no-untyped-def]
    root, _ = corpus("siim")
    with (root / "train-rle.csv").open() as file:
        drawn = [row for row in csv.DictReader(file) if row[" EncodedPixels"].strip() != "-1"]
    boxes = corpora.find(corpora.CORPORA["siim"], root).table.set_index("image")["boxes"]
    for row in drawn[:4]:
        numbers = [int(number) for number in row[" EncodedPixels"].split()]
        flat, place = np.zeros(1024 * 1024, dtype=bool), 0
        for skip, length in zip(numbers[::2], numbers[1::2], strict=True):
            place += skip
            flat[place : place + length] = True
            place += length
        mask = flat.reshape(1024, 1024).T
        y, x = np.nonzero(mask)
        name, *sides = boxes[row["ImageId"]].split()
        assert name == "pneumothorax"
        assert [int(side) for side in sides] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]


@pytest.mark.parametrize(("runs", "word"), [("5 3 4", "pairs"), ("1048570 7", "out of an image")])
def test_a_broken_run_length_code_is_refused(runs: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        rle.box(runs)


def test_boxes_are_in_the_listing(corpus) -> None:  # type: ignore[no-untyped-def]
    nih = corpora.find(corpora.CORPORA["nih"], corpus("nih")[0]).table
    assert [box for box in nih["boxes"] if box] == ["Infiltrate 10.5 20 30 40"]
    root, _ = corpus("rsna")
    with (root / "stage_2_train_labels.csv").open() as file:
        drawn = Counter(row["patientId"] for row in csv.DictReader(file) if row["Target"] == "1")
    rsna = corpora.find(corpora.CORPORA["rsna"], root).table.set_index("image")["boxes"]
    assert {name: cell.count("|") + 1 for name, cell in rsna.items() if cell} == drawn


def test_prepared_masks_are_both_lungs(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    specs = [f"{name}:{corpus(name)[0]}" for name in ("montgomery", "jsrt", "shenzhen")]
    cache = prepare(specs, tmp_path / "cache", size=64, workers=0, progress=False)
    assert cache.masks is not None
    for source, masks in (("montgomery", 10), ("jsrt", 6), ("shenzhen", 6)):
        mine = ((cache.index["source"] == source) & (cache.index["has_mask"] == 1)).to_numpy()
        assert mine.sum() == masks
        sides = cache.masks[mine] == 255
        assert sides[:, :, 32:].any(axis=(1, 2)).all()
        assert sides[:, :, :32].any(axis=(1, 2)).all() == (source != "shenzhen"), (
            "the fixture draws one side there"
        )


def test_jsrt_is_shown_with_bone_bright(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    cache = prepare([f"jsrt:{corpus('jsrt')[0]}"], tmp_path / "cache", size=64, workers=0, progress=False)
    lungs, between = cache.images[:, 20:36, 18:22].mean(), cache.images[:, 4:10, 28:36].mean()
    assert lungs < between
    assert set(cache.index["spacing_mm"]) == {0.175}
