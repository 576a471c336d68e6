"""The report: opens from disk, asks the network for nothing, and shows hostile names as the text they are."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sscxr import figures, report
from sscxr.evaluation.probe import Comparison, Probe
from sscxr.report_summary import SiteScore

HOSTILE = '<script>alert("x")</script> $a_{ & \'b\'" onload="y'


def site_rows(names: list[str], rounds: int = 5) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for number in range(rounds):
        for place, name in enumerate(names):
            loss = 0.8 - 0.05 * number + 0.01 * place
            row = {"round": number, "site": name, "images": 100 + place, "loss": loss, "update_norm": 2.5}
            rows.append(row | {"seconds": 3.0, "bytes": 1e6, "outcome": "folded", "reason": ""})
    return pd.DataFrame(rows)


def absent(number: int, site: str, outcome: str, reason: str) -> pd.DataFrame:
    row = {"round": number, "site": site, "outcome": outcome, "reason": reason}
    return pd.DataFrame([row]).reindex(columns=list(report.SITE_COLUMNS))


def comparison(label: str = "pneumonia") -> Comparison:
    trained = Probe(label, "paediatric", "linear", 0.912, 0.874, 0.945, 500, 300, 120, 60, 100)
    untrained = Probe(label, "paediatric", "linear", 0.801, 0.742, 0.853, 500, 300, 120, 60, 100)
    return Comparison(trained, untrained, 0.111, 0.062, 0.160)


def pictures(count: int = 3) -> report.Reconstruction:
    images = np.random.default_rng(0).integers(0, 256, (count, 16, 20), dtype=np.uint8)
    return report.Reconstruction(HOSTILE, images, 255 - images, images // 2)


def write(folder: Path, **changes: Any) -> str:
    settings: dict[str, Any] = {
        "title": "demo",
        "rounds": [{"round": number, "held_out_loss": 0.9 - 0.1 * number} for number in range(5)],
        "sites": site_rows(["north", "south"]),
        "reconstructions": [pictures()],
        "probes": [comparison()],
    }
    return report.write(folder / "report.html", **(settings | changes)).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_says_what_ran_and_whether_it_learned(tmp_path: Path) -> None:
    text = Page(write(tmp_path)).text
    assert "2 sites trained on 201 images over 5 rounds." in text
    assert "It learned: the reconstruction loss on held-out images went from 0.900 to 0.500 (-44%)." in text
    assert "beat the untrained encoder's in 1 of 1 probe" in text
    assert "No site was absent and no update was refused." in text
    assert "0.912 (0.874 to 0.945)" in text


def test_says_what_went_wrong(tmp_path: Path) -> None:
    rows = [
        site_rows(["north", "south"]),
        absent(5, "south", "refused", "norm 41 out of bounds"),
        absent(5, "north", "absent", "not connected"),
    ]
    text = Page(write(tmp_path, sites=pd.concat(rows), stopped="no quorum", notes=["see the log"])).text
    for told in (
        "absent: 1 time, refused: 1 time",
        "norm 41 out of bounds",
        "not connected",
        "no quorum",
        "see the log",
    ):
        assert told in text


def test_says_what_a_round_sends_where_the_ledger_knows(tmp_path: Path) -> None:
    rounds = [{"round": number, "bytes_up": 43e6 * (1 + number), "bytes_down": 1.2e9} for number in (0, 1, 2)]
    told = "In the median round 86.0 MB came from all sites together, and 1,200.0 MB went to them."
    assert told in Page(write(tmp_path, rounds=rounds)).text
    assert "median round" not in write(tmp_path, rounds=[{"round": 1}])


def test_a_run_that_got_worse_is_not_praised(tmp_path: Path) -> None:
    rising = [{"round": number, "held_out_loss": 0.5 + 0.1 * number} for number in range(3)]
    assert "It did not learn" in write(tmp_path, rounds=rising)
    flat = [{"round": number, "held_out_loss": 0.5} for number in range(3)]
    assert "It hardly learned" in write(tmp_path, rounds=flat)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "sites": pd.DataFrame(),
            "rounds": [],
            "reconstructions": (),
            "probes": (),
            "stopped": "nobody came",
        },
        {"sites": absent(0, "north", "late", "no reply"), "rounds": [], "probes": ()},
        {
            "sites": site_rows(["one"], rounds=1),
            "rounds": [{"round": 0, "held_out_loss": None}],
            "probes": (),
        },
        {"sites": site_rows(["one"]).assign(loss=np.nan, images=np.nan), "rounds": []},
    ],
)
def test_failed_and_short_runs_have_a_report(tmp_path: Path, changes: dict[str, Any]) -> None:
    text = Page(write(tmp_path, **changes)).text
    assert "nan" not in text.lower()


def test_rows_as_read_back_from_the_file(tmp_path: Path) -> None:
    rows = pd.concat([site_rows(["north", "south"]), absent(5, "south", "late", "no reply")])
    rows.to_csv(tmp_path / "sites.csv", index=False)
    text = Page(write(tmp_path, sites=pd.read_csv(tmp_path / "sites.csv"))).text
    assert "no reply" in text
    assert "nan" not in text.lower()


def test_hostile_text_is_shown_and_never_run(tmp_path: Path) -> None:
    rows = pd.concat(
        [site_rows([HOSTILE, "_under", "$x$", "\x00\x1b"]), absent(5, HOSTILE, HOSTILE, HOSTILE)]
    )
    settings = {"title": HOSTILE, "notes": [HOSTILE], "stopped": HOSTILE, "probes": [comparison(HOSTILE)]}
    page = Page(write(tmp_path, sites=rows, **settings))
    assert not any(tag == "script" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(HOSTILE) >= 8
    assert "_under" in page.text
    assert "$x$" in page.text


def test_asks_the_network_for_nothing(tmp_path: Path) -> None:
    text = write(tmp_path)
    assert not re.search(r"https?:|[\"'(=\s]//|@import", text, re.IGNORECASE)
    for tag, attributes in Page(text).tags:
        assert tag not in ("link", "iframe", "script", "object")
        for name in ("src", "href"):
            address = attributes.get(name) or "#"
            assert address.startswith(("data:image/png;base64,", "#"))


def test_charts_do_not_share_ids(tmp_path: Path) -> None:
    page = Page(write(tmp_path))
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    hrefs = {attributes["href"].removeprefix("#") for _, attributes in page.tags if attributes.get("href")}
    assert hrefs <= set(ids)


def test_small_counts_and_totals_are_not_shown(tmp_path: Path) -> None:
    rows = site_rows(["north", "south"])
    rows.loc[rows["site"] == "south", "images"] = 7
    text = Page(write(tmp_path, sites=rows)).text
    assert "<10" in text
    assert "107" not in text


def test_same_run_same_page_and_nothing_left_beside_it(tmp_path: Path) -> None:
    assert write(tmp_path) == write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_pictures_are_the_pixels_given(tmp_path: Path) -> None:
    item = pictures()
    _, data = figures.image_row(item.clean, gap=2).split(",")
    row = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert row.shape == (16, 3 * 20 + 2 * 2)
    assert np.array_equal(row[:, 22:42], item.clean[1])
    assert write(tmp_path).count("data:image/png") == 3
    with pytest.raises(ValueError, match="uint8"):
        figures.image_row(item.clean / 255)


def test_many_sites_are_told_apart() -> None:
    styles = {
        (
            figures.COLOURS[n % len(figures.COLOURS)],
            figures.MARKERS[n % len(figures.MARKERS)],
        )
        for n in range(42)
    }
    assert len(styles) == 42


def test_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outcome"):
        write(tmp_path, sites=site_rows(["a"]).drop(columns=["outcome"]))


# ---- of a fine-tuning


def scored(site: str, gap: float, half: float = 0.02) -> SiteScore:
    def figure(value: float) -> dict[str, Any]:
        return {"value": value, "low": value - half, "high": value + half, "n": 40}

    return SiteScore(site, "auroc", 120, 40, 31, figure(0.9), figure(0.9 - gap), figure(gap))


def test_a_fine_tuning_is_told_in_its_own_words(tmp_path: Path) -> None:
    scores = [scored("anna", 0.1), scored("bona", -0.1), scored("cora", 0.0)]
    scores.append(SiteScore("dora", "", 0, 0, 0, None, None, None))
    rounds = [{"round": n, "held_out_loss": 0.5, "scores": {"anna": 0.7 + n / 10}} for n in range(3)]
    page = Page(write(tmp_path, stage="classify", rounds=rounds, scores=scores, probes=[])).text
    assert "better than a site's own at 1 of 3 sites, worse at 1" in page
    assert "+0.100 [+0.080, +0.120]" in page
    assert "too few images" in page
    assert "cross-entropy" in page
    assert "AUROC on each site's held-out images" in page
    for word in ("reconstruction loss", "probe was run"):
        assert word not in page
