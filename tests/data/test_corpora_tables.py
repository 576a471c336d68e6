"""The tables that torchxrayvision brings: whole, read as it reads them, and asked for where it is absent."""

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from layouts.base import shipped

from sscxr.data import corpora
from sscxr.data.corpora import base, vocabulary
from sscxr.data.corpora.base import CorpusError


def _absent(name: str, folder: Path) -> corpora.Found:
    return corpora.find(corpora.CORPORA[name], folder, absent=True)


@pytest.mark.skipif(find_spec("torchxrayvision") is None, reason="torchxrayvision is not installed")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reader", "settings", "images", "patients", "same"),
    [
        ("nih", "NIH_Dataset", {"views": ["*"], "unique_patients": False}, 112_120, 30_805, {}),
        (
            "chexpert",
            "CheX_Dataset",
            {"views": ["*"], "unique_patients": False},
            223_414,
            64_540,
            {"Pleural Other": "pleural_other"},
        ),
        ("rsna", "RSNA_Pneumonia_Dataset", {"views": ["*"]}, 26_684, 26_684, {}),
        ("siim", "SIIM_Pneumothorax_Dataset", {}, 12_047, 12_047, {}),
        (
            "vindr",
            "VinDr_Dataset",
            {"views": ["*"]},
            15_000,
            15_000,
            {"Nodule/Mass": "lung_lesion", "Pulmonary Fibrosis": "fibrosis"},
        ),
    ],
)
def test_whole_tables_are_read_as_torchxrayvision_reads_them(  # type: ignore[no-untyped-def]
    name, reader, settings, images, patients, same, tmp_path: Path
) -> None:
    import torchxrayvision

    theirs = getattr(torchxrayvision.datasets, reader)(imgpath=str(tmp_path), **settings)
    found = _absent(name, tmp_path)
    assert len(found.table) == images
    assert found.table["patient_id"].nunique() == patients
    key = {
        "nih": "Image Index",
        "chexpert": "Path",
        "rsna": "patientId",
        "siim": "ImageId",
        "vindr": "image_id",
    }[name]
    ids = theirs.csv[key].str.replace("CheXpert-v1.0-small/train/", "", regex=False).to_numpy()
    table = found.table.set_index("image")
    compared = 0
    for column, word in enumerate(theirs.pathologies):
        label = same.get(word, word.lower().replace(" ", "_"))
        if f"label:{label}" not in table.columns:
            assert label in ("aortic_enlargement", "calcification", "ild", "other_lesion"), label
            continue
        values = theirs.labels[:, column]
        if name == "siim":  # a row a mask: any that is drawn counts
            present = {image for image, value in zip(ids, values, strict=True) if value}
            assert present == set(table.index[table[f"label:{label}"] == 1])
        else:
            ours = table[f"label:{label}"].reindex(ids).to_numpy()
            assert np.array_equal(np.nan_to_num(ours, nan=-1), np.nan_to_num(values, nan=-1)), label
        compared += 1
    assert compared >= 1


@pytest.mark.skipif(find_spec("torchxrayvision") is None, reason="torchxrayvision is not installed")
@pytest.mark.slow
def test_padchest_s_whole_table_maps_every_word(tmp_path: Path) -> None:
    found = _absent("padchest", tmp_path)
    words, healthy, rows = Counter[str](), 0, 0
    for row in shipped("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"):
        mine = {word.strip(" '").lower() for word in row["Labels"].strip("[]").split(",")}
        words.update(mine)
        healthy += "normal" in mine
        rows += 1
    assert not [line for line in found.warnings if "map to nothing" in line]
    assert set(words) <= set(vocabulary.PADCHEST_WORDS)
    assert len(found.table) == rows == 160_861
    assert int((found.table["label:normal"] == 1).sum()) == healthy
    for word, label in (
        ("cardiomegaly", "cardiomegaly"),
        ("emphysema", "emphysema"),
        ("tuberculosis", "tuberculosis"),
    ):
        assert int((found.table[f"label:{label}"] == 1).sum()) == words[word]


def test_without_torchxrayvision_a_table_that_is_not_there_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(CorpusError, match=r"Data_Entry_2017_v2020.csv .* pip install 'sscxr\[corpora\]'"):
        corpora.find(corpora.CORPORA["nih"], tmp_path)


def test_a_labelled_folder_reads_the_table_it_has_without_torchxrayvision(  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch, corpus
) -> None:
    root, truth = corpus("nih")
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    assert len(corpora.find(corpora.CORPORA["nih"], root).table) == truth.images
