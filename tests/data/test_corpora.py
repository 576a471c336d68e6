"""Public corpora, laid out as published: what is listed, against what plain reading counts; and hostile folders."""

import csv
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from layouts import LAYOUTS
from layouts.base import Truth, picture, shipped, write_table
from layouts.labeller import labelled

from sscxr.data import corpora, rle, vocabulary
from sscxr.data.corpora import base
from sscxr.data.corpora.base import CorpusError
from sscxr.data.prepare import prepare


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Truth]]:
    return {}


@pytest.fixture
def corpus(request: pytest.FixtureRequest, laid: dict[str, tuple[Path, Truth]], tmp_path_factory):  # type: ignore[no-untyped-def]
    """A corpus in its folder, laid out once."""

    def get(name: str) -> tuple[Path, Truth]:
        if name not in laid:
            root = tmp_path_factory.mktemp(name)
            laid[name] = root, LAYOUTS[name](root)
        return laid[name]

    return get


def counted(found: corpora.Found) -> Truth:
    """A listing, counted as `Truth` counts."""
    truth = Truth()
    for row in found.table.to_dict("records"):
        cells = {name: row[name] for name in found.labels}
        truth.add(
            str(row["patient_id"]),
            str(row["view"]),
            test=bool(row["held_out"]),
            hospital=str(row["hospital"]),
            **{name.removeprefix("label:"): None if np.isnan(v) else int(v) for name, v in cells.items()},
        )
        truth.masks += bool(row["mask"])
    return truth


def test_every_corpus_has_a_layout_here() -> None:
    assert set(LAYOUTS) == set(corpora.CORPORA)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_listing_counts_what_plain_reading_counts(name: str, corpus) -> None:  # type: ignore[no-untyped-def]
    root, truth = corpus(name)
    found = corpora.find(corpora.CORPORA[name], root)
    told = counted(found)
    assert found.missing == 0
    assert (told.images, told.tests, told.masks) == (truth.images, truth.tests, truth.masks)
    assert told.views == truth.views
    if name != "folders":  # where nothing tells whose they are
        assert len(told.patients) == len(truth.patients)
    if set(truth.hospitals) != {"?"}:
        assert told.hospitals == truth.hospitals
    for label, counts in truth.labels.items():
        assert told.labels.get(label) == counts, label
    assert set(told.labels) <= set(vocabulary.LABELS)
    assert found.table["image"].is_unique
    assert all((root / file).is_file() for file in found.table["file"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_records_are_those_of_the_listing(name: str, corpus) -> None:  # type: ignore[no-untyped-def]
    root, truth = corpus(name)
    found = corpora.find(corpora.CORPORA[name], root)
    records = list(corpora.records(found))
    assert len(records) == truth.images
    assert sum(record.held_out for record in records) == truth.tests
    for label, counts in truth.labels.items():
        assert Counter(record.labels[label] for record in records if label in record.labels) == counts
    public = name != "folders"
    assert all(bool(record.public_id) == public and bool(record.place) == public for record in records)


def test_uncertain_labels_by_the_setting(corpus) -> None:  # type: ignore[no-untyped-def]
    root, _ = corpus("chexpert")
    with (root / "CheXpert-v1.0-small" / "train.csv").open() as file:
        rows = {row["Path"].split("/", 2)[2]: row for row in csv.DictReader(file)}
    assert any("-1.0" in row.values() for row in rows.values())
    for setting, value in (("ignore", None), ("zeros", 0), ("ones", 1)):
        found = corpora.find(corpora.CORPORA["chexpert"], root, uncertain=setting)
        ours = {record.public_id: record.labels for record in corpora.records(found)}
        for image, row in rows.items():
            told = {name: v for name, v in labelled(row, uncertain=value).items() if v is not None}
            assert ours[image] == told, (setting, image)
    with pytest.raises(CorpusError, match="'maybe' is none of ignore, zeros, ones"):
        corpora.find(corpora.CORPORA["chexpert"], root, uncertain="maybe")


def test_chexpert_s_full_release_lies_in_batches_and_has_the_same_ids(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    small, _ = corpus("chexpert")
    whole = tmp_path / "chexpertchestxrays-u20210408"
    first = small / "CheXpert-v1.0-small"
    shutil.copytree(first / "train", whole / "CheXpert-v1.0 batch 2 (train 1)")
    batch = whole / "CheXpert-v1.0 batch 1 (validate & csv)"
    shutil.copytree(first / "valid", batch / "valid")
    for name in ("train.csv", "valid.csv"):
        (batch / name).write_text((first / name).read_text().replace("CheXpert-v1.0-small", "CheXpert-v1.0"))
    ours, theirs = (corpora.find(corpora.CORPORA["chexpert"], folder).table for folder in (small, tmp_path))
    assert ours["image"].tolist() == theirs["image"].tolist()
    assert ours["patient_id"].tolist() == theirs["patient_id"].tolist()


def test_patients_of_two_corpora_are_two_but_where_a_corpus_was_made_of_another(corpus) -> None:  # type: ignore[no-untyped-def]
    found = {
        name: corpora.find(corpora.CORPORA[name], corpus(name)[0]).table for name in ("nih", "rsna", "covidx")
    }
    assert found["nih"]["patient_id"].str.fullmatch(r"nih:\d+").all()
    assert found["rsna"].loc[found["rsna"]["split"] == "train", "patient_id"].str.fullmatch(r"nih:\d+").all()
    patients = found["covidx"].set_index("hospital")["patient_id"]
    assert patients["rsna"].str.startswith("rsna:").all()
    assert patients["sirm"].str.startswith("covidx:sirm/").all()


# ---- masks and boxes


def test_siim_masks_are_decoded_as_torchxrayvision_decodes_them(corpus) -> None:  # type: ignore[no-untyped-def]
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
        assert np.array_equal(rle.decode(row[" EncodedPixels"]), mask)
        y, x = np.nonzero(mask)
        name, *sides = boxes[row["ImageId"]].split()
        assert name == "pneumothorax"
        assert [int(side) for side in sides] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]


@pytest.mark.parametrize(("runs", "word"), [("5 3 4", "pairs"), ("1048570 7", "out of an image")])
def test_a_broken_run_length_code_is_refused(runs: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        rle.decode(runs)


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


# ---- published test sets


@pytest.mark.parametrize("name", ["nih", "kermany", "covidx"])
def test_no_published_test_image_is_trained_on_unless_asked_for(name: str, corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, truth = corpus(name)
    assert truth.tests
    cache = prepare([f"{name}:{root}"], tmp_path / "cache", size=48, workers=0, progress=False)
    tests = (cache.index["published"] == "test").to_numpy()
    assert tests.sum() == truth.tests
    for share in (0.0, 0.2, 0.9):
        held_out = cache.held_out(share)
        assert held_out[tests].all()
        # A patient with one image in the test set is set aside whole.
        groups = cache.index["group"].to_numpy()
        assert held_out[np.isin(groups, groups[tests])].all()
    assert not cache.held_out(0.0)[~tests & ~np.isin(groups, groups[tests])].any()
    asked = prepare(
        [f"{name}:{root}"], tmp_path / "asked", size=48, workers=0, progress=False, train_on_test=True
    )
    assert not asked.held_out(0.0).any()
    assert (asked.index["published"] == "test").sum() == truth.tests


def test_an_image_published_as_a_test_image_by_one_of_two_corpora_is_set_aside(tmp_path: Path) -> None:
    for folder in ("a/train/Normal", "a/test/Normal", "b/train/Normal"):
        (tmp_path / folder).mkdir(parents=True)
    picture(tmp_path / "a/train/Normal/1.png")
    picture(tmp_path / "a/test/Normal/2.png")
    shutil.copy(tmp_path / "a/test/Normal/2.png", tmp_path / "b/train/Normal/x.png")
    specs = [f"folders:{tmp_path / name}" for name in "ba"]
    cache = prepare(specs, tmp_path / "cache", size=48, workers=0, progress=False)
    assert len(cache) == 2
    assert cache.held_out(0.0).sum() == 1


def test_a_patient_s_place_is_the_same_at_any_resolution_and_under_any_salt(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, _ = corpus("padchest")
    places = []
    for salt, size in ((b"a" * 32, 48), (b"b" * 32, 64)):
        cache = prepare(
            [f"padchest:{root}"], tmp_path / str(size), size=size, salt=salt, workers=0, progress=False
        )
        places.append(dict(zip(cache.index["public_id"], cache.index["split"], strict=True)))
    assert places[0] == places[1]
    half = tmp_path / "half"
    shutil.copytree(root, half)
    for file in sorted(half.rglob("*.png"))[::2]:
        file.unlink()
    cache = prepare([f"padchest:{half}"], tmp_path / "c", size=48, workers=0, progress=False)
    kept = dict(zip(cache.index["public_id"], cache.index["split"], strict=True))
    assert kept.items() <= places[0].items()


# ---- hostile folders


def test_half_a_download_goes_on_and_says_how_much_is_missing(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, truth = corpus("nih")
    half = tmp_path / "nih"
    shutil.copytree(root, half)
    shutil.rmtree(half / "images_002")
    found = corpora.find(corpora.CORPORA["nih"], half)
    assert found.missing == 20
    assert len(found.table) == truth.images - 20
    assert (
        "nih: 20 of 40 images (50.0%) are not in the folder; going on with those that are" in found.warnings
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_of_another_corpus_is_named(name: str, corpus) -> None:  # type: ignore[no-untyped-def]
    root, _ = corpus(name)
    other = "montgomery" if name != "montgomery" else "mimic"
    with pytest.raises(CorpusError, match="not found") as error:
        corpora.find(corpora.CORPORA[other], root)
    assert "\n" not in str(error.value)
    if name != "folders":
        assert name in str(error.value).rpartition("looks like")[2]


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"folders"}))
def test_an_empty_folder_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if name != "siim":  # its table is the quickest of those that torchxrayvision brings
        monkeypatch.setattr(base, "find_spec", lambda package: None)
    with pytest.raises(CorpusError, match=r"not found|is there; looked for") as error:
        corpora.find(corpora.CORPORA[name], tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(CorpusError, match="no such folder"):
        corpora.find(corpora.CORPORA[name], tmp_path / "x")


def test_a_mistyped_corpus_is_told_the_nearest() -> None:
    with pytest.raises(CorpusError, match="no corpus is called 'chexpart'; did you mean chexpert"):
        corpora.named("chexpart:/data")
    assert corpora.named("/data/nih") is None
    assert corpora.named("MANIFEST.csv") is None


def test_a_table_with_an_unknown_word_is_listed_and_said(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, _ = corpus("nih")
    folder = tmp_path / "nih"
    shutil.copytree(root, folder)
    table = folder / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("Cardiomegaly|Emphysema", "Cardiomegaly|Dragon"))
    found = corpora.find(corpora.CORPORA["nih"], folder)
    assert any("1 word of its labels map" in line and "'dragon'" in line for line in found.warnings)


def test_rows_that_repeat_an_image_count_once(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, truth = corpus("nih")
    folder = tmp_path / "nih"
    shutil.copytree(root, folder)
    table = folder / "Data_Entry_2017_v2020.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join([*lines, lines[1], lines[2]]))
    found = corpora.find(corpora.CORPORA["nih"], folder)
    assert len(found.table) == truth.images
    assert "nih: 2 rows repeat an image; the first of each counts" in found.warnings


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "word"),
    [
        ("nih", "Data_Entry_2017_v2020.csv", "Finding Labels", "Findings", "no column 'Finding Labels'"),
        ("covid19", "metadata.csv", "filename", "name", "no column 'filename'"),
        ("covidx", "train_COVIDx9A.txt", " COVID-19 sirm", "", "line 1 has"),
        ("rsna", "pneumonia-challenge-dataset-mappings_2018.json", "subset_img_id", "x", "not the mapping"),
        (
            "tbx11k",
            "TBX11K/annotations/json/TBX11K_trainval.json",
            "categories",
            "x",
            "not TBX11K's annotations",
        ),
        ("openi", "ecgen-radiology/0.xml", "</eCitation>", "", "not readable as XML"),
    ],
)
def test_a_damaged_table_is_one_line(
    name: str, file: str, old: str, new: str, word: str, corpus, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    root, _ = corpus(name)
    folder = tmp_path / name
    shutil.copytree(root, folder)
    text = (folder / file).read_text()
    if name == "covidx":  # a line of two words
        text = "one two\n" + text
    (folder / file).write_text(text.replace(old, new) if name != "covidx" else text)
    with pytest.raises(CorpusError, match=word) as error:
        corpora.find(corpora.CORPORA[name], folder)
    assert "\n" not in str(error.value)


def test_a_patient_a_folder_is_no_class(tmp_path: Path) -> None:
    for number in range(51):
        (tmp_path / f"patient{number}").mkdir()
        (tmp_path / f"patient{number}" / "1.png").touch()
    with pytest.raises(CorpusError, match="51 folders hold images, more than 50; they are no classes"):
        corpora.find(corpora.CORPORA["folders"], tmp_path)


def test_links_that_go_round_end(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, truth = corpus("montgomery")
    folder = tmp_path / "m"
    shutil.copytree(root, folder)
    (folder / "MontgomerySet" / "again").symlink_to(folder)
    assert len(corpora.find(corpora.CORPORA["montgomery"], folder).table) == truth.images


# ---- torchxrayvision's whole tables, and its own reading of them


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


def test_tcia_s_layout_of_stony_brook(tmp_path: Path) -> None:
    rows = []
    for number in range(4):
        place = f"COVID-19-NY-SBU/A{number:06d}/12-18-1900-NA-CHEST-74312/1.000000-AP-{number:05d}"
        picture(tmp_path / "manifest-1628608914773" / place / "1-1.dcm", PatientID=f"A{number:06d}")
        rows.append(
            {
                "Series UID": f"1.3.{number}", "Collection": "COVID-19-NY-SBU", "3rd Party Analysis": "NO",
                "Data Description URI": "x", "Subject ID": f"A{number:06d}", "Study UID": f"1.2.{number}",
                "Study Description": "CHEST", "Study Date": "12-18-1900", "Series Description": "AP",
                "Manufacturer": "Carestream", "Modality": "CT" if number == 3 else "DX", "SOP Class Name": "",
                "SOP Class UID": "", "Number of Images": "1", "File Size": "1 MB",
                "File Location": ".\\" + place.replace("/", "\\"), "Download Timestamp": "x",
            }
        )  # fmt: skip
    write_table(tmp_path / "manifest-1628608914773" / "metadata.csv", rows)
    table = corpora.find(corpora.CORPORA["stonybrook"], tmp_path).table
    assert table["patient_id"].tolist() == [f"stonybrook:A{number:06d}" for number in range(3)]
    assert set(table["hospital"]) == {"Carestream"}
    assert (table["label:covid19"] == 1).all()
