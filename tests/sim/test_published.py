"""Virtual sites of corpora: partition files that others can read, who holds what, and what is said of it."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from caches import make_cache
from layouts import LAYOUTS
from marks import slow
from simulations import SMALLEST, typed

from sim import confounding, holdings, plan, published
from sim import test_sets as tested
from sim.partition import PartitionError, gathered, groups_of, partition
from sscxr import config as configs
from sscxr.data import corpora
from sscxr.data.cache.cache import Cache, open_cache
from sscxr.data.prepare.prepare import prepare

HELD = 0.2


def simulate(*arguments: str) -> None:
    """`python -m sim.run` to its end."""
    assert typed(["--config", "smoke", *SMALLEST, *arguments]) == 0


def public(folder: Path, salt: str, *, images: int = 120, start: int = 0) -> Cache:
    """A cache of a public corpus, two images a patient; salts and what was downloaded differ, names do not."""
    numbers = np.arange(start, images)
    patients = numbers // 2
    index = {
        "image": [f"{hash((salt, int(number))) & (2**63 - 1):016x}" for number in numbers],
        "group": [f"{hash((salt, 'p', int(patient))) & (2**63 - 1):016x}" for patient in patients],
        "source": "nih",
        "split": (patients * 7 % 60 + 0.5) / 60,
        "public_id": [f"{number:08d}_000.png" for number in numbers],
        "hospital": np.where(patients % 3 == 0, "east", "west"),
        "age_band": np.where(patients % 4 == 0, "5-17", "40-59"),
        "label:edema": np.where(patients % 3 == 0, 1.0, 0.0),
    }
    return make_cache(folder, np.zeros((len(numbers), 8, 8), np.uint8), index)


def groups(cache: Cache, by: str = "source"):  # type: ignore[no-untyped-def]
    return groups_of(cache, laterals=False, test_share=HELD, by=by)


def dealt(cache: Cache, parts: dict[str, list[str]]) -> dict[str, str]:
    """The site of every image, by its public name."""
    home = holdings.homes(cache.index, parts)
    return dict(zip(cache.index["public_id"], home, strict=True))


def test_a_partition_is_read_back_by_somebody_else_s_cache(tmp_path: Path) -> None:
    ours, theirs = public(tmp_path / "a", "a"), public(tmp_path / "b", "b")
    parts = partition(groups(ours), "dirichlet", 4, alpha=0.5, minimum=5, seed=3)
    file = tmp_path / "partition.csv"
    file.write_text(published.text(ours.index, ours.held_out(HELD), parts))
    read, notes = published.read(file, theirs.index, theirs.held_out(HELD), groups(theirs), 5)
    assert dealt(theirs, read) == dealt(ours, parts)
    assert notes == []
    for text in (*ours.index["group"], *ours.index["image"]):
        assert text not in file.read_text(), "no salted hash of a public image is published"


def test_a_hospital_s_own_images_are_named_by_salted_hashes_alone(tmp_path: Path) -> None:
    cache = public(tmp_path / "a", "a")
    cache.index["public_id"], cache.index["source"] = "", "local"
    parts = partition(groups(cache), "iid", 3, alpha=0.5, minimum=5, seed=3)
    text = published.text(cache.index, cache.held_out(HELD), parts)
    table = pd.read_csv(pd.io.common.StringIO(text), dtype=str)
    assert set(table["image"]) == set(cache.index["image"])
    file = tmp_path / "partition.csv"
    file.write_text(text)
    read, _ = published.read(file, cache.index, cache.held_out(HELD), groups(cache), 5)
    assert read == parts


def test_what_the_file_and_the_data_do_not_share_is_said(tmp_path: Path) -> None:
    ours, theirs = public(tmp_path / "a", "a", images=100), public(tmp_path / "b", "b", start=20)
    parts = partition(groups(ours), "iid", 3, alpha=0.5, minimum=5, seed=3)
    file = tmp_path / "partition.csv"
    text = published.text(ours.index, ours.held_out(HELD), parts)
    # One image of a patient at another site than the other.
    lines = text.splitlines(keepends=True)
    row = next(n for n, line in enumerate(lines) if "00000051_000" in line)
    site = lines[row].split(",")[2]
    other = next(name for name in parts if name != site)
    lines[row] = lines[row].replace(site, other)
    file.write_text("".join(lines))
    read, notes = published.read(file, theirs.index, theirs.held_out(0.0), groups(theirs), 1)
    assert any("20 of the 100 images of partition.csv are not in the data" in line for line in notes)
    assert any("10 patients of the data are not in partition.csv" in line for line in notes)
    assert any("1 images went with the rest of their patient" in line for line in notes)
    assert any("sets aside are trained on here" in line for line in notes)
    homes = dealt(theirs, read)
    assert homes["00000050_000.png"] == homes["00000051_000.png"] != ""
    assert homes["00000110_000.png"] == ""


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("group,site\na,b\n", "no column 'source'"),
        ("source,image,site,part\nnih,x.png,a,train\n", "none of its 1 rows names an image of the data"),
        ("source,image,site,part\nnih,00000001_000.png,a/b,train\n", "site 'a/b'"),
        ("source,image,site,part\nnih,x,a,train\nnih,x,b,train\n", "nih x is there twice"),
        ("source,image,site,part\nnih,00000099_000.png,a,train\n", "source a has 2 images to train on"),
    ],
)
def test_a_partition_file_that_does_not_fit_is_one_line(text: str, word: str, tmp_path: Path) -> None:
    cache = public(tmp_path / "a", "a")
    file = tmp_path / "p.csv"
    file.write_text(text)
    with pytest.raises(PartitionError, match=word) as error:
        published.read(
            file, cache.index, cache.held_out(0.0), groups_of(cache, laterals=True, test_share=0), 5
        )
    assert "\n" not in str(error.value)
    with pytest.raises(PartitionError, match="no such file"):
        published.read(tmp_path / "none.csv", cache.index, cache.held_out(0.0), groups(cache), 5)


# ---- what is kept apart


@pytest.mark.parametrize(
    ("by", "names"), [("hospital", ["nih-east", "nih-west"]), ("age", ["adults", "children"])]
)
def test_hospitals_and_ages_apart(by: str, names: list[str], tmp_path: Path) -> None:
    cache = public(tmp_path / "a", "a")
    parts = partition(groups(cache, by), "natural", 2, alpha=0.5, minimum=5, seed=0)
    assert list(parts) == names
    told = "hospital" if by == "hospital" else "age_band"
    for members in parts.values():
        assert cache.index.loc[cache.index["group"].isin(members), told].nunique() == 1


def test_a_patient_of_two_hospitals_is_where_most_of_the_images_are(tmp_path: Path) -> None:
    hospitals = ["east"] * 2 + ["west"] + ["west"] * 3
    index = {"group": ["a"] * 3 + ["b"] * 3, "hospital": hospitals, "source": "padchest"}
    cache = make_cache(tmp_path, np.zeros((6, 8, 8), np.uint8), index)
    found = groups_of(cache, laterals=False, test_share=0, by="hospital")
    assert dict(zip(found.names, found.source, strict=True)) == {"a": "padchest east", "b": "padchest west"}


def test_gathering_counts_as_plain_loops_do() -> None:
    rng = np.random.default_rng(0)
    count = 400
    group = rng.integers(0, 90, count)
    index = pd.DataFrame(
        {
            "group": [f"g{number:03d}" for number in group],
            "split": (group * 37 % 90) / 90,
            "source": rng.choice(["b", "a", "c"], count),
            "label:x": rng.choice([0.0, 1.0, np.nan], count),
            "label:y": rng.choice([0.0, 1.0, np.nan], count),
        }
    )
    training = rng.random(count) < 0.7
    found = gathered(index, training, ["c", "a", "b"])
    order = sorted(
        set(index["group"]),
        key=lambda name: (float(index.loc[index["group"] == name, "split"].iloc[0]), name),
    )
    assert found.names.tolist() == order
    for place, name in enumerate(order):
        mine = index[index["group"] == name]
        assert found.images[place] == len(mine)
        assert found.training[place] == training[mine.index].sum()
        assert found.source[place] == min(set(mine["source"]), key="cab".index)
        kinds = [
            0 if x == 1 else 1 if y == 1 else 2 for x, y in zip(mine["label:x"], mine["label:y"], strict=True)
        ]
        assert found.kind[place] == min(set(kinds), key=lambda kind: (-kinds.count(kind), kind))


def test_a_label_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match=r"sim.label='oedema'.*its labels: edema"):
        groups_of(public(tmp_path, "a"), laterals=False, test_share=0, label="oedema")


# ---- who holds what, and whether it gives the label away


def test_holdings_count_every_site(tmp_path: Path) -> None:
    cache = public(tmp_path / "a", "a")
    parts = partition(groups(cache, "hospital"), "natural", 2, alpha=0.5, minimum=5, seed=0)
    home = holdings.homes(cache.index, parts)
    counts = holdings.table(cache.index, cache.held_out(HELD), home)
    assert counts["images"].sum() == 120
    assert counts["patients"].sum() == 60
    assert counts.loc["nih-east", "edema present"] == counts.loc["nih-east", "images"]
    assert counts.loc["nih-west", "edema present"] == 0
    assert counts.loc["nih-west", "edema known"] == counts.loc["nih-west", "images"]
    assert counts["children"].sum() == 30
    assert holdings.picture(cache.index, home, counts).startswith(b"\x89PNG")
    lines = holdings.warnings(cache.index, cache.held_out(HELD), home)
    assert lines[0] == "Single-class sites: nih-east has only images with edema."
    assert lines[1] == "Single-class sites: nih-west has no image with edema."
    assert "edema (1.00)" in lines[2]


def test_sites_that_are_alike_are_not_remarked() -> None:
    rng = np.random.default_rng(0)
    places = pd.Series(rng.choice(["a", "b", "c"], 900))
    labels = {"edema": rng.choice([0.0, 1.0], 900), "rare": (rng.random(900) < 0.03).astype(float)}
    assert confounding.warnings(places, labels) == []


def test_the_area_is_that_of_each_site_s_share_as_a_score() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    places = pd.Series(rng.choice(list("abcde"), 500))
    chance = places.map({"a": 0.95, "b": 0.9, "c": 0.5, "d": 0.05, "e": 0.05}).to_numpy()
    values = (rng.random(500) < chance).astype(float)
    score = pd.Series(values).groupby(places).transform("mean")
    lines = confounding.warnings(places, {"x": values})
    assert f"x ({roc_auc_score(values, score):.2f})" in lines[-1]


def test_test_sets_are_said(tmp_path: Path) -> None:
    cache = public(tmp_path, "a")
    cache.index["published"] = np.where(np.arange(120) < 10, "test", "train")
    held_out = np.arange(120) < 10
    assert tested.lines(cache.index, held_out) == [
        "None of the 10 images that nih published as its test set was trained on."
    ]
    two = cache.index.assign(source=np.where(np.arange(120) < 4, "mine", "nih"))
    assert tested.lines(two, held_out) == [
        "None of the 10 images that mine, nih published as their test sets was trained on."
    ]
    (line,) = tested.lines(cache.index, np.zeros(120, dtype=bool))
    assert line.startswith(
        "10 of the 10 images that nih published as its test set were trained on, as asked for"
    )


# ---- from folders to sites


@pytest.mark.slow
@pytest.mark.parametrize("method", ["natural", slow("natural-dirichlet"), slow("dirichlet")])
def test_a_plan_is_dealt_and_read_by_the_prepared_images(method: str, tmp_path: Path) -> None:
    for name in ("padchest", "montgomery", "nih"):
        LAYOUTS[name](tmp_path / name)
    specs = [Path(f"{name}:{tmp_path / name}") for name in ("padchest", "montgomery", "nih")]
    config = configs.load("default", [f"sim.partition={method}", "privacy.min_cell=1", "sim.by=source"])
    plan.plan(config, specs, 4, tmp_path / "plan", absent=False)
    table = pd.read_csv(tmp_path / "plan" / "partition.csv", dtype=str)
    assert table.groupby("source")["image"].count().to_dict() == {"montgomery": 10, "nih": 40, "padchest": 16}
    if method == "natural":
        assert set(table["site"]) == {"montgomery", "nih-1", "nih-2", "padchest"}
    cache = prepare([str(spec) for spec in specs], tmp_path / "cache", size=48, workers=0, progress=False)
    rows = cache.rows()
    index, held_out = cache.index.iloc[rows], cache.held_out(0.2)[rows]
    parts, notes = published.read(tmp_path / "plan" / "partition.csv", index, held_out, groups(cache), 1)
    assert notes == [], "places are those of the prepared cache"
    assert dealt(cache, parts).items() >= dict(zip(table["image"], table["site"], strict=True)).items()
    again = [group for members in parts.values() for group in members]
    assert len(again) == len(set(again))


@pytest.mark.filterwarnings("ignore:'sim.plan' found in sys.modules:RuntimeWarning")
def test_a_plan_that_is_there_is_not_replaced_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    LAYOUTS["montgomery"](tmp_path / "mc")

    def planned(*more: str) -> tuple[int, str]:
        given = [f"montgomery:{tmp_path / 'mc'}", "privacy.min_cell=1", "--out", str(tmp_path / "plan")]
        monkeypatch.setattr(sys, "argv", ["sim.plan", *given, *more])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("sim.plan", run_name="__main__")
        return int(ended.value.code or 0), capsys.readouterr().err

    assert planned("--clients", "2") == (0, "")
    written = (tmp_path / "plan" / "partition.csv").read_bytes()
    code, said = planned("--clients", "3")
    assert (code, len(said.splitlines())) == (1, 1)
    assert "already has a plan; give --force" in said
    assert (tmp_path / "plan" / "partition.csv").read_bytes() == written
    assert planned("--clients", "3", "--force")[0] == 0
    assert (tmp_path / "plan" / "partition.csv").read_bytes() != written


@pytest.mark.slow
def test_covidx_by_source_is_single_class_and_the_report_says_so(tmp_path: Path) -> None:
    """From the folder to two rounds; the partition that one run wrote is another's."""
    LAYOUTS["covidx"](tmp_path / "covidx")
    data = ("--data", f"covidx:{tmp_path / 'covidx'}")
    first = tmp_path / "first"
    simulate(*data, "--clients", "3", "--out", str(first), "sim.by=hospital")
    counts = pd.read_csv(first / "holdings.csv", index_col="site")
    assert list(counts.index) == ["covidx-actmed", "covidx-rsna", "covidx-sirm"]
    shares = counts["covid19 present"] / counts["covid19 known"]
    assert shares.to_dict() == {"covidx-actmed": 0, "covidx-rsna": 0, "covidx-sirm": 1}
    page, card = (first / "report.html").read_text(), (first / "encoder" / "README.md").read_text()
    for text in (page, card.replace("\\", "")):
        assert "covidx-sirm has only images with covid19" in text
        assert "The site gives the label away" in text
        assert "None of the 6 images that covidx published as its test set was trained on" in text
    second = tmp_path / "second"
    cache, file = str(first / "cache"), str(first / "partition.csv")
    simulate("--data", cache, "--out", str(second), "--partition", file, "run.name=second")
    assert (second / "partition.csv").read_bytes() == (first / "partition.csv").read_bytes()


@pytest.mark.slow
def test_every_corpus_from_its_folder_to_two_rounds(tmp_path: Path) -> None:
    truths = {name: layout(tmp_path / name) for name, layout in LAYOUTS.items()}
    data = [f"{name}:{tmp_path / name}" for name in LAYOUTS]
    out = tmp_path / "out"
    simulate("--data", *data, "--clients", str(len(LAYOUTS)), "--out", str(out), "privacy.min_cell=1")
    cache = open_cache(out / "cache")
    assert set(cache.index["source"]) == (set(corpora.CORPORA) - {"folders"}) | {"local"}
    trained = pd.read_csv(out / "sites.csv")
    assert trained[trained["outcome"] == "folded"].groupby("site")["round"].nunique().eq(2).all()
    for name, truth in truths.items():
        mine = cache.index[cache.index["source"] == ("local" if name == "folders" else name)]
        assert len(mine) == truth.images, name
        assert mine["group"].nunique() == len(truth.patients), name
        assert (mine["has_mask"] == 1).sum() == truth.masks, name
        assert dict(mine["view"].value_counts()) == dict(truth.views), name
        for label, wanted in truth.labels.items():
            values = mine[f"label:{label}"]
            assert ((values == 1).sum(), (values == 0).sum()) == (wanted[1], wanted[0]), (name, label)
        held_out = cache.held_out(0.0)[mine.index]
        assert held_out.sum() >= truth.tests, name
    parts = pd.read_csv(out / "partition.csv")
    site = parts.merge(
        cache.index.assign(
            id=cache.index["public_id"].where(cache.index["public_id"] != "", cache.index["image"])
        ),
        left_on="image",
        right_on="id",
    )
    assert site.groupby("group")["site"].nunique().eq(1).all(), "no patient is in two sites"
