"""Both benchmarks of a pretrained encoder against an untrained one: a table, a file that is gone on with."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import finetunings
import pytest
import releases

BENCH = Path(__file__).resolve().parents[2] / "bench"


class Bench:
    """Runs a script of `bench/` in this process, as one types it."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        monkeypatch.syspath_prepend(BENCH)
        releases.write(folder / "encoder")
        finetunings.spotted(folder / "cache", each=2)

    def __call__(self, script: str, *options: object) -> list[list[str]]:
        """The cells of the table's rows."""
        words = ["--encoder", self.folder / "encoder", "--data", self.folder / "cache", "--label", "spot"]
        words += ["--out", self.folder / "out.jsonl", *options, *finetunings.QUICK]
        self.monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        runpy.run_path(str(BENCH / f"{script}.py"), run_name="__main__")
        rows = [line.strip("| ").split(" | ") for line in self.capsys.readouterr().out.splitlines()]
        return rows[2:]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "out.jsonl").read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, monkeypatch, capsys)


@pytest.mark.slow
def test_drift_judges_each_pair_at_every_source_and_goes_on(bench: Bench) -> None:
    first = bench("drift", "--train", "north", "--test", "north,south")
    assert [row[:2] for row in first] == [["north", "north"], ["north", "south"]]
    lines = bench.lines()
    # Of its own source only patients that it did not learn from, of the other all.
    assert lines[0]["gain"]["n"] < 30 < lines[1]["gain"]["n"] == 60
    for line in lines:
        assert line["gain"]["value"] == pytest.approx(
            line["pretrained"]["value"] - line["untrained"]["value"]
        )
        assert 0 <= line["pretrained"]["low"] <= line["pretrained"]["high"] <= 1
    again = bench("drift", "--train", "north,south", "--test", "north,south")
    assert again[:2] == first
    assert [row[:2] for row in again[2:]] == [["south", "north"], ["south", "south"]]
    assert bench.lines()[:2] == lines


@pytest.mark.slow
def test_few_labels_has_a_table_a_figure_a_row_a_count_and_a_picture(bench: Bench) -> None:
    options = ["--source", "north,south", "--per-class", "4,0", "--picture", bench.folder / "few.svg"]
    rows = bench("few_labels", *options, "--seeds", "2", "--encoder", f"other={bench.folder / 'encoder'}")
    rows = [row for row in rows if row[0] in ("4", "all")]
    assert [row[:2] for row in rows] == [["4", "2"], ["all", "2"]] * 3, "AUROC, average precision, accuracy"
    lines = bench.lines()
    assert len(lines) == 4
    for place, figure in enumerate(("auroc", "aupr", "accuracy")):
        few = [one for one in lines if one["per_class"] == 4]
        means = {
            name: sum(one[name][figure] for one in few) / 2 for name in ("untrained", "pretrained", "other")
        }
        row = rows[2 * place]
        for cell, mean in zip(row[2:5], means.values(), strict=True):
            assert cell.startswith(f"{mean:.3f} +- ")
        assert row[3] == row[4], "the same encoder twice"
        assert float(row[5].split()[0]) == pytest.approx(means["pretrained"] - means["untrained"], abs=6e-4)
    assert "<svg" in (bench.folder / "few.svg").read_text()
