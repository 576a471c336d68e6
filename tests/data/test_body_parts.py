"""Body Part Examined in many languages and encodings, and a site's own words."""

from pathlib import Path

import pytest
from dicoms import chest, dataset, save
from exports import quarantine, run

from sscxr.data.cache.cache import open_cache
from sscxr.data.pixels import body_parts, parsing


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        *dict.fromkeys(
            ("BRUST", "TORACE", "THORAX PA", "ОГК", "POITRINE", "TORAX", "胸部", "Chest_1_view", "thorax ap/pa"),
            "chest",
        ).items(),
        ("Органы грудной клетки", "chest"),
        ("go\u0308g\u0306u\u0308s", "chest"),  # letters and their marks apart
        ("छाती", "chest"),
        ("Порт.", "not stated"),
        ("N/A", "not stated"),
        ("", "not stated"),
        ("BWS THORAX", "other"),
        ("胸椎", "other"),
        ("Грудной отдел позвоночника", "other"),
        ("RIBCAGE", "other"),
        ("LONG LEG", "other"),
        ("GAMBA", "not known"),
    ],
)  # fmt: skip
def test_words_of_many_languages(part: str, kind: str) -> None:
    assert body_parts.kind(part) == kind
    assert body_parts.kind(part.lower()) == kind


@pytest.mark.parametrize(
    ("charset", "encoding"), [(None, "utf-8"), ("ISO_IR 192", "utf-8"), ("ISO_IR 144", "iso8859_5")]
)
def test_letters_beyond_ascii_are_read_by_the_headers_character_set_or_as_utf_8(
    tmp_path: Path, charset: str | None, encoding: str
) -> None:
    tags = {"SpecificCharacterSet": charset} if charset else {}
    path = save(dataset(chest(), BodyPartExamined="XXXXXX", **tags), tmp_path / "image.dcm")
    written = "ОГК".encode(encoding).ljust(6)
    path.write_bytes(path.read_bytes().replace(b"XXXXXX", written))
    assert body_parts.written(parsing.parse(path)) == "ОГК"


def test_a_site_adds_its_words_and_the_files_refused_before_are_tried_again(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    for number, part in enumerate(("CHEST", "SCHLEIMIG", "GAMBA TORTA")):
        save(dataset(chest(seed=number), BodyPartExamined=part), tmp_path / "export" / f"{number}.dcm")
    cache = run(tmp_path / "export", tmp_path / "cache")
    assert len(cache) == 1
    assert quarantine(tmp_path / "cache")["1.dcm"] == (
        "body part not known: SCHLEIMIG; where that is a chest, give --chest-word"
    )
    cache = run(tmp_path / "export", tmp_path / "cache", chest_words=["schleimig", "gamba  torta"])
    assert len(cache) == 3
    assert len(run(tmp_path / "export", tmp_path / "cache")) == 3
    assert len(open_cache(tmp_path / "cache")) == 3
