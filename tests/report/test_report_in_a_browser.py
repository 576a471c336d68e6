"""The report in a real browser: what it shows is what the ledger says, and nothing is asked of a network."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from reports import HOSTILE, Page, absent, record, site_rows, stopped

from sscxr.report import page, pictures

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)"),
]
# What the browser asks at its start, whatever the page.
BROWSERS_OWN = (
    "http://clients2.google.com/time/",
    "http://update.googleapis.com/service/update2/",
    "https://update.googleapis.com/service/update2/",
    "https://accounts.google.com/ListAccounts",
    "https://www.google.com/async/",
)
SITES, ROUNDS = 64, 100


def opened(file: Path, scratch: Path) -> tuple[str, str, list[str]]:
    """The page as the browser has it after loading, what it printed, and the addresses that it asked for."""
    log = scratch / "net.json"
    ended = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={scratch / 'profile'}", "--enable-logging=stderr", f"--log-net-log={log}",
            "--window-size=390,844", "--dump-dom", file.resolve().as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    asked = re.findall(r'"url":"([a-z]+:[^"]*)"', log.read_text())
    return ended.stdout, ended.stderr, asked


def check(file: Path, scratch: Path) -> str:
    """Open a page: no complaint, no address but its own file. Its text."""
    shown, said, asked = opened(file, scratch)
    assert "CONSOLE" not in said, said
    own = ("chrome", "file:", "data:", "about:", *BROWSERS_OWN)
    assert sorted({address.split("?")[0] for address in asked if not address.startswith(own)}) == []
    return Page(shown).text


@pytest.fixture
def large() -> dict[str, Any]:
    """64 sites, 100 rounds, two of them absent once."""
    names = [f"site-{number:02d}" for number in range(SITES)]
    rounds = [
        {
            "round": number,
            "loss": 0.9 - 0.004 * number,
            "held_out_loss": 0.95 - 0.005 * number,
            "seconds": 60.0,
        }
        for number in range(1, ROUNDS + 1)
    ]
    return {"sites": site_rows(names, ROUNDS), "rounds": rounds, "counts": {}, "strips": []}


def test_64_sites_and_100_rounds(large: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page.render(record(**large)))
    assert file.stat().st_size < 5_000_000
    text = check(file, tmp_path)
    first, last = large["rounds"][0]["held_out_loss"], large["rounds"][-1]["held_out_loss"]
    assert f"from {first:.3f} to {last:.3f}" in text
    assert f"{SITES} sites trained" in text
    assert all(name in text for name in large["sites"]["site"].unique())


def test_a_stopped_run_with_hostile_names(tmp_path: Path) -> None:
    rows = site_rows(["north", "south"])
    rows = pd.concat([rows, absent(5, "south", "refused", HOSTILE)])
    file = tmp_path / "report.html"
    file.write_text(page.render(record(sites=rows, status=stopped("no quorum"))))
    text = check(file, tmp_path)
    assert "no quorum" in text
    assert HOSTILE in text


def test_who_holds_what_stands_on_a_dark_page_s_own_ground(tmp_path: Path) -> None:
    style = (Path(page.__file__).parent / "templates" / "style.css").read_text()
    white = pictures.address(pictures.strip(np.full((1, 200, 640), 255, np.uint8)))
    file, seen = tmp_path / "page.html", tmp_path / "seen.png"
    file.write_text(f'<style>{style}</style><div class="table"><img class="sheet" src="{white}"></div>')
    subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            f"--user-data-dir={tmp_path / 'profile'}", "--blink-settings=preferredColorScheme=0",  # 0: dark
            "--window-size=800,600", f"--screenshot={seen}", file.resolve().as_uri(),
        ],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    shown = np.asarray(Image.open(seen).convert("RGB")).astype(int)
    ground = shown[590, 790]
    assert ground.max() < 50
    assert np.abs(shown[30:200, 30:600] - ground).max() <= 2


def test_a_planted_script_is_heard(tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text("<script>console.error('planted')</script><img src='http://127.0.0.1:9/x.png'>")
    _, said, asked = opened(file, tmp_path)
    assert "planted" in said
    assert any(address.startswith("http://127.0.0.1:9/") for address in asked)
    with pytest.raises(AssertionError):
        check(file, tmp_path / "again")
