"""A run's record for tests of the report, hostile names, and a page taken apart."""

import functools
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd

from sscxr import config as configs
from sscxr import stages
from sscxr.evaluation.gains import Comparison, Probe
from sscxr.report import page, pictures
from sscxr.report.record import Record
from sscxr.runs import SITE_COLUMNS, Status, Words

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
    return pd.DataFrame([row]).reindex(columns=list(SITE_COLUMNS))


def comparison(label: str = "pneumonia") -> Comparison:
    trained = Probe(label, "paediatric", "linear", 0.912, 0.874, 0.945, 500, 300, 120, 60, 100)
    untrained = Probe(label, "paediatric", "linear", 0.801, 0.742, 0.853, 500, 300, 120, 60, 100)
    return Comparison(trained, untrained, 0.111, 0.062, 0.160)


def strips(count: int = 3) -> list[pictures.Strip]:
    images = np.random.default_rng(0).integers(0, 256, (count, 16, 20), dtype=np.uint8)
    return [pictures.Strip(HOSTILE, pictures.strip(part)) for part in (images, 255 - images, images // 2)]


COUNTS = {
    "view": {"PA": 60, "AP": 30},
    "age": {"18-39": 50, "40-59": 40},
    "images": {"first of a patient": 70, "further of a patient": 20},
    "grey": {"0-15": 20, "16-31": 30, "240-255": 50},
}


def record(**changes: Any) -> Record:
    settings: dict[str, Any] = {
        "title": "demo",
        "stage": "pretrain",
        "status": Status("finished", 5, 5, "", "2026-01-02T03:04:05+00:00"),
        "rounds": [{"round": number, "held_out_loss": 0.9 - 0.1 * number} for number in range(5)],
        "sites": site_rows(["north", "south"]),
        "counts": {"north": COUNTS},
        "strips": strips(),
        "probes": [comparison()],
    }
    known = settings | changes
    return Record(**({"words": words(known["stage"])} | known))


@functools.cache
def words(stage: str) -> Words:
    return stages.of(configs.load("smoke", [f"run.stage={stage}"])).words


def write(**changes: Any) -> str:
    return page.render(record(**changes))


def stopped(reason: str) -> Status:
    return Status("stopped", 5, 9, reason, "")


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
