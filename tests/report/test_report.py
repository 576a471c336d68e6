"""The report: opens from disk, asks the network for nothing, and shows hostile names as the text they are."""

import base64
import io
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from reports import COUNTS, HOSTILE, Page, absent, comparison, record, site_rows, stopped, strips, write

from sscxr.report import SiteScore, compare, pictures, shares, summary, svg
from sscxr.runs import EVERYBODY, SITE_COLUMNS, Status, read_sites


@cache
def plain() -> str:
    """The page of the record as it is; drawing a page's charts takes half a second."""
    return write()


def test_says_what_ran_and_whether_it_learned() -> None:
    text = Page(plain()).text
    assert "2 sites trained on 201 images over 5 rounds." in text
    assert (
        "It learned: the reconstruction loss on held-out images went from 0.900 to 0.500 (−44\u00a0%)."
        in text
    )
    assert "beat the untrained encoder's in 1 of 1 probe" in text
    assert "no site was absent and no update was refused." in text
    assert "0.912 (0.874 to 0.945)" in text


def test_says_what_went_wrong() -> None:
    rows = [
        site_rows(["north", "south"]),
        absent(5, "south", "refused", "norm 41 out of bounds"),
        absent(5, "north", "absent", "not connected"),
    ]
    text = Page(write(sites=pd.concat(rows), status=stopped("no quorum"), notes=["see the log"])).text
    for told in (
        "absent: 1 time, refused: 1 time",
        "norm 41 out of bounds",
        "not connected",
        "no quorum",
        "see the log",
    ):
        assert told in text


def test_says_what_a_round_sends_where_the_ledger_knows() -> None:
    rounds = [{"round": number, "bytes_up": 43e6 * (1 + number), "bytes_down": 1.2e9} for number in (0, 1, 2)]
    told = "In the median round 86.0 MB came from all sites together, and 1,200.0 MB went to them."
    assert told in answered(rounds=rounds)
    assert "median round" not in answered(rounds=[{"round": 1}])


def test_a_run_that_got_worse_is_not_praised() -> None:
    rising = [{"round": number, "held_out_loss": 0.5 + 0.1 * number} for number in range(3)]
    assert "It did not learn" in answered(rounds=rising)
    flat = [{"round": number, "held_out_loss": 0.5} for number in range(3)]
    assert "It hardly learned" in answered(rounds=flat)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "sites": pd.DataFrame(columns=list(SITE_COLUMNS)),
            "rounds": [],
            "strips": (),
            "probes": (),
            "counts": {},
            "status": stopped("nobody came"),
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
def test_failed_and_short_runs_have_a_report(changes: dict[str, Any]) -> None:
    text = Page(write(**changes)).text
    assert "nan" not in text.lower()


@pytest.mark.slow
def test_rows_as_read_back_from_the_file(tmp_path: Path) -> None:
    rows = pd.concat([site_rows(["north", "south"]), absent(5, "south", "late", "no reply")])
    rows.to_csv(tmp_path / "sites.csv", index=False)
    text = Page(write(sites=read_sites(tmp_path / "sites.csv"))).text
    assert "no reply" in text
    assert "nan" not in text.lower()


def test_hostile_text_is_shown_and_never_run() -> None:
    rows = pd.concat(
        [site_rows([HOSTILE, "_under", "$x$", "\x00\x1b"]), absent(5, HOSTILE, HOSTILE, HOSTILE)]
    )
    settings = {
        "title": HOSTILE,
        "notes": [HOSTILE],
        "status": stopped(HOSTILE),
        "probes": [comparison(HOSTILE)],
    }
    seen = Page(write(sites=rows, **settings))
    assert not any(tag == "script" for tag, _ in seen.tags)
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert seen.text.count(HOSTILE) >= 8
    assert "_under" in seen.text
    assert "$x$" in seen.text


def test_asks_the_network_for_nothing() -> None:
    text = plain()
    assert not re.search(r"https?:|[\"'(=\s]//|@import", text, re.IGNORECASE)
    for tag, attributes in Page(text).tags:
        assert tag not in ("iframe", "script", "object")
        for name in ("src", "href"):
            address = attributes.get(name) or "#"
            assert address == "data:," or address.startswith(("data:image/png;base64,", "#"))


def test_charts_do_not_share_ids() -> None:
    seen = Page(plain())
    ids = [attributes["id"] for _, attributes in seen.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    hrefs = {attributes["href"].removeprefix("#") for _, attributes in seen.tags if attributes.get("href")}
    assert {href for href in hrefs if not href.startswith("data:")} <= set(ids)


def test_small_counts_and_totals_are_not_shown() -> None:
    rows = site_rows(["north", "south"])
    rows.loc[rows["site"] == "south", "images"] = 7
    text = Page(write(sites=rows)).text
    assert "<10" in text
    assert "107" not in text


def test_same_run_same_page() -> None:
    assert write() == plain()


def test_pictures_are_the_pixels_given() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 20), dtype=np.uint8)
    row = np.asarray(Image.open(io.BytesIO(pictures.strip(images))))
    assert row.shape == (16, 3 * 20 + 2 * 2, 2)
    assert np.array_equal(row[:, 22:42, 0], images[1])
    assert (row[:, :20, 1] == 255).all()
    assert (row[:, 20:22, 1] == 0).all()  # what is between them is no grey level of theirs
    told = [
        source for tag, attributes in Page(plain()).tags if tag == "img" and (source := attributes["src"])
    ]
    assert [base64.b64decode(source.split(",")[1]) for source in told] == [strip.png for strip in strips()]
    with pytest.raises(ValueError, match="uint8"):
        pictures.strip(images / 255)


def test_many_sites_are_told_apart() -> None:
    assert len({(svg.style(n)["color"], svg.style(n)["marker"]) for n in range(42)}) == 42


@pytest.mark.slow
def test_a_crowd_of_sites_is_a_range_and_a_map() -> None:
    names = [f"site-{number:02d}" for number in range(20)]
    seen = Page(write(sites=site_rows(names)))
    assert "middle half of the sites" in seen.text
    assert "Loss by site and round" in seen.text
    assert all(seen.text.count(name) >= 2 for name in names)  # in the table and on the map


def test_what_a_site_told_of_its_images_is_shown() -> None:
    text = Page(plain()).text
    for told in ("Views", "Ages", "Grey levels", "PA: 60", "18-39: 50", "70"):
        assert told in text
    assert "Grey levels" not in Page(write(counts={})).text


def test_a_run_that_goes_on_says_so() -> None:
    running = Status("running", 3, 9, "", "")
    told = summary.ended(record(status=running))
    assert "round 3 of 9" in told


@pytest.mark.slow
def test_the_map_of_images_has_a_mark_for_each() -> None:
    points = pd.DataFrame(
        {"x": [0.0, 1, 2], "y": [1.0, 0, 2], "site": ["a", "b", "b"], "label": [HOSTILE, "", "n"]}
    )
    seen = Page(write(embedding=points))
    told = [attributes["aria-label"] for tag, attributes in seen.tags if tag == "svg"]
    assert any("Map of 3 images" in str(text) and "by site" in str(text) for text in told)


def answered(**changes: Any) -> str:
    """The summary alone; a page with its charts takes half a second."""
    return "\n".join(line for _, lines in summary.answers(record(**changes)) for line in lines)


def test_whether_it_is_better_than_a_site_alone_is_always_answered() -> None:
    assert "no site was also trained alone" in Page(plain()).text
    running = Status("running", 3, 9, "", "")
    for status in (running, stopped("no quorum")):
        told = answered(stage="classify", status=status, probes=[])
        assert "Not measured yet" in told


def test_what_is_measured_at_the_end_is_not_said_to_be_missing_before_it() -> None:
    running = Status("running", 3, 9, "", "")
    assert "is not measured yet" in answered(status=running, probes=[])
    assert "was not measured" in answered(probes=[])


def test_a_run_that_nobody_came_to_says_who_was_expected_and_why_it_ended() -> None:
    none = pd.DataFrame(columns=list(SITE_COLUMNS))
    settings = {"federation.sites": ["north", "south", "west"]}
    changes = {"sites": none, "rounds": [], "counts": {}, "strips": (), "probes": ()}
    seen = Page(write(**changes, settings=settings, status=Status("stopped", 0, 9, "no quorum", "")))
    assert "The run stopped early after round 0 of 9: no quorum" in seen.text
    assert "0 of 3" in seen.text
    assert "Nothing: no site was absent" not in seen.text
    died = answered(status=Status("died", 5, 9, "its process ended", ""))
    assert "The run died after round 5 of 9" in died
    assert "Nothing: no site was absent" not in died


def test_a_share_is_of_the_images_that_are_known_of_and_says_where_that_is_a_bound() -> None:
    """North's total is told. South's is not: 90 images in a table, but 120 were trained on; so 90 are 75 %."""
    south = {"view": {"PA": 60, "AP": 30}, "images": {}, "sex": {"F": 40}, "grey": {"0-15": 100}}
    rows = site_rows(["north", "south"])
    rows.loc[rows["site"] == "south", "images"] = 120
    known = record(counts={"north": COUNTS, "south": south}, sites=rows)
    assert shares.total(known, "north") == (90, True)
    assert shares.total(known, "south") == (120, False)
    assert shares.total(record(counts={"south": south}), "south") == (101, False)
    views, ages = shares.charts(known)[:2]
    assert "≤ south" in views.svg
    assert "≤ north" not in views.svg
    assert "its shares are at most these" in views.note
    # South told no age: it has an empty row, which needs no bound.
    assert "south" in ages.svg
    assert "≤" not in ages.svg + ages.note


def test_a_small_change_is_told_with_a_digit_more() -> None:
    assert summary.change(-0.301) == "\u221230\u00a0%"
    assert summary.change(0.0049) == "+0.5\u00a0%"


def test_who_holds_what_is_shown_where_it_is_known() -> None:
    png = pictures.strip(np.zeros((1, 4, 4), np.uint8))
    seen = Page(write(holdings=png))
    told = [attributes["src"] for tag, attributes in seen.tags if tag == "img"]
    assert pictures.address(png) in told
    assert "Who holds what" in seen.text
    assert "Who holds what" not in Page(plain()).text


def test_a_run_without_a_held_out_loss_is_named_beside_the_others() -> None:
    other = record(title="other", rounds=[{"round": 1}])
    text = Page(compare.render([record(), other], ["demo", "other"])).text
    assert "Not measured: other." in text


# ---- of several runs


def test_runs_are_compared() -> None:
    one = record(settings={"pretrain.lr": 0.1, "run.seed": 0, "run.name": "demo"})
    other = record(title="other", settings={"pretrain.lr": HOSTILE, "run.seed": 0, "run.name": "other"})
    seen = Page(compare.render([one, other], ["demo", "other"]))
    assert "2 runs compared" in seen.text
    assert "pretrain.lr" in seen.text
    assert HOSTILE in seen.text
    assert "run.seed" not in seen.text
    assert seen.text.count("0.912 (0.874 to 0.945)") == 2


def test_losses_of_other_data_are_not_compared_silently() -> None:
    one, other = record(settings={"data.std": 0.25}), record(settings={"data.std": 0.5})
    text = compare.render([one, other], ["a", "b"])
    assert "Losses are not comparable" in text
    assert "differ: data.std." in text


# ---- of a fine-tuning


def scored(site: str, gap: float, half: float = 0.02) -> SiteScore:
    def figure(value: float) -> dict[str, Any]:
        return {"value": value, "low": value - half, "high": value + half, "n": 40}

    return SiteScore(site, "auroc", 120, 40, 31, figure(0.9), figure(0.9 - gap), figure(gap))


def test_fine_tunings_are_compared_where_they_were_measured() -> None:
    scores = [scored("anna", 0.1), scored("bona", 0.0), SiteScore("cora", "auroc", 9, 9, 9, None, None, None)]
    one = record(stage="classify", scores=scores, probes=[])
    other = record(stage="classify", scores=scores[2:], probes=[])
    text = Page(compare.render([one, other], ["a", "b"])).text
    assert text.count("better than a site alone at") == 1
    assert "better than a site alone at 1 of 2 sites" in text
    assert "anna (AUROC)" in text
    assert "frozen features" not in text


def test_a_fine_tuning_is_told_in_its_own_words() -> None:
    scores = [scored("anna", 0.1), scored("bona", -0.1), scored("cora", 0.0)]
    scores.append(SiteScore("dora", "", 0, 0, 0, None, None, None))
    rounds = [{"round": n, "held_out_loss": 0.5, "scores": {"anna": 0.7 + n / 10}} for n in range(3)]
    seen = Page(write(stage="classify", rounds=rounds, scores=scores, probes=[])).text
    assert "better than a site's own at 1 of 3 sites, worse at 1" in seen
    assert "+0.100 [+0.080, +0.120]" in seen
    assert "too few images" in seen
    assert "cross-entropy" in seen
    assert "AUROC on each site's held-out images" in seen
    for word in ("reconstruction loss", "probe was run"):
        assert word not in seen


def test_encoders_of_sites_alone_are_told_by_whose_patients_they_were_tested_on() -> None:
    own = [replace(scored(site, gap), figure="linear") for site, gap in (("anna", 0.1), ("bona", -0.1))]
    all_of_them = [replace(score, where=EVERYBODY, gap=scored("", 0.1).gap) for score in own]
    nearest = [replace(score, figure="k-NN") for score in own]
    seen = Page(write(scores=[*own, *nearest, *all_of_them])).text
    assert "on the site's own held-out patients, better than a site's own at 1 of 2 sites, worse at 1" in seen
    assert "on all sites' held-out patients, better than a site's own at 2 of 2 sites, worse at 0" in seen
    assert "Give bona the encoders of their own" in seen
    assert "k-NN AUROC" in seen


@pytest.mark.slow
def test_a_report_is_read_without_what_trains() -> None:
    heavy = "{'torch', 'timm', 'sklearn', 'flwr', 'ray'}"
    check = (
        f"import sys, sscxr.report; found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
