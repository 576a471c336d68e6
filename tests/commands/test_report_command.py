"""`sscxr report`: a page of one run, of several, and what cannot be done in one line."""

import json
from pathlib import Path

import pytest
from reports import Page, site_rows

from sscxr import config as configs
from sscxr import runs
from sscxr.commands import cli, command_line
from sscxr.report import record


def make_run(folder: Path, name: str, loss: float = 0.8) -> Path:
    """A finished run of two sites and two rounds."""
    folder.mkdir(parents=True)
    (folder / runs.CONFIG).write_text(configs.dumps(configs.load("smoke", [f"run.name={name}"])))
    status = {
        "state": "finished",
        "round": 2,
        "rounds": 2,
        "reason": "",
        "updated": "2026-01-02T03:04:05+00:00",
    }
    (folder / runs.STATUS).write_text(json.dumps(status))
    site_rows(["north", "south"], 2).to_csv(folder / runs.SITES, index=False)
    rounds = [
        {"round": n, "loss": loss, "held_out_loss": loss / n, "seconds": 1.0, "sites": 2} for n in (1, 2)
    ]
    (folder / runs.ROUNDS).write_text("".join(json.dumps(one) + "\n" for one in rounds))
    return folder


class Typed:
    """`sscxr report ...` as typed in a folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr("sys.argv", ["sscxr", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command_line.main(cli.app, "sscxr", lambda words: "again")
        said = self.capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Typed(monkeypatch, capsys)


def test_a_run_has_its_report_in_its_folder_written_anew_each_time(typed: Typed, tmp_path: Path) -> None:
    out = make_run(tmp_path / "runs" / "one", "lungs")
    for _ in range(2):
        assert typed("runs/one") == (0, "runs/one/report.html\n", "")
        assert "lungs" in Page((out / "report.html").read_text()).text
        (out / "report.html").write_text("old")


@pytest.mark.slow
def test_another_page_is_not_written_over_without_force(typed: Typed, tmp_path: Path) -> None:
    make_run(tmp_path / "one", "lungs")
    page = tmp_path / "page.html"
    assert typed("one", "--out", page)[0] == 0
    assert not (tmp_path / "one" / "report.html").exists()
    page.write_text("mine")
    code, out, err = typed("one", "--out", page)
    assert (code, out, page.read_text()) == (1, "", "mine")
    assert err.count("\n") == 1
    assert f"{page} already exists; give --force" in err
    assert typed("one", "--out", page, "--force")[0] == 0
    assert "lungs" in page.read_text()


def test_several_runs_are_compared_on_one_page(typed: Typed, tmp_path: Path) -> None:
    make_run(tmp_path / "one", "lungs")
    make_run(tmp_path / "two", "hearts", loss=0.5)
    assert typed("one", "two") == (0, "comparison.html\n", "")
    text = Page((tmp_path / "comparison.html").read_text()).text
    assert "lungs: 2 sites, 2 rounds, loss on held-out images 0.800 → 0.400" in text
    assert "hearts: 2 sites, 2 rounds, loss on held-out images 0.500 → 0.250" in text
    code, _, err = typed("one", "two")
    assert code == 1
    assert "comparison.html already exists" in err


@pytest.mark.slow
def test_a_run_is_found_by_its_name_as_by_watch(typed: Typed, tmp_path: Path) -> None:
    kept = make_run(tmp_path / "home" / ".sscxr" / "runs" / "lungs", "kept")
    assert typed("lungs") == (0, f"{kept / 'report.html'}\n", "")
    (tmp_path / "lungs").mkdir()  # a folder of something else does not hide it
    assert typed("lungs")[1] == f"{kept / 'report.html'}\n"
    make_run(tmp_path / "hearts", "here")
    make_run(tmp_path / "home" / ".sscxr" / "runs" / "hearts", "kept")
    assert typed("hearts") == (0, "hearts/report.html\n", "")  # what lies here comes first


def test_what_is_no_run_is_one_line_that_says_where_it_was_looked_for(typed: Typed, tmp_path: Path) -> None:
    code, out, err = typed("nix")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert str(tmp_path / "nix") in err
    assert str(tmp_path / "home" / ".sscxr" / "runs" / "nix") in err
    assert f"no run 'no/nix': there is no {tmp_path / 'no' / 'nix'}" in typed("no/nix")[2]
    (tmp_path / "empty").mkdir()
    code, _, err = typed("empty")
    assert (code, err.count("\n")) == (1, 1)
    assert "empty: no run has started there (no config.yaml)" in err
    assert not list((tmp_path / "empty").iterdir())


def test_a_run_of_an_earlier_sscxr_has_its_report(typed: Typed, tmp_path: Path) -> None:
    """It knew nothing of some settings: they are at their defaults."""
    out = make_run(tmp_path / "one", "lungs")
    lines = (out / runs.CONFIG).read_text().splitlines()
    kept = [line for line in lines if not line.strip().startswith(("accumulate:", "checkpointing:"))]
    assert len(kept) == len(lines) - 2
    (out / runs.CONFIG).write_text("\n".join(kept))
    assert typed("one")[0] == 0


@pytest.mark.slow
def test_two_runs_of_different_rules_say_what_differs(typed: Typed, tmp_path: Path) -> None:
    make_run(tmp_path / "one", "lungs")
    other = make_run(tmp_path / "two", "hearts")
    settings = configs.load("smoke", ["run.name=hearts", "pretrain.lr=0.25", "data.std=0.5"])
    (other / runs.CONFIG).write_text(configs.dumps(settings))
    assert typed("one", "two", "--out", "both.html")[0] == 0
    text = Page((tmp_path / "both.html").read_text()).text
    assert "pretrain.lr" in text
    assert "Losses are not comparable" in text
    assert "differ: data.std." in text


DAMAGED = {
    runs.SITES: b"\xff\x00,\n",
    runs.ROUNDS: b"[1]\n",
    runs.PROBES: b'[{"trained": {}}]',
    runs.SCORES: b"[[]]",
    record.NOTES: b"[",
    "pictures/index.json": b"[1]",
    record.EMBEDDING: bytes(range(128, 200)) + b"\n1\n",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_a_run_is_one_line_that_names_it(typed: Typed, tmp_path: Path, name: str) -> None:
    out = make_run(tmp_path / "one", "lungs")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_bytes(DAMAGED[name])
    code, _, said = typed("./one")
    assert (code, len(said.splitlines())) == (1, 1)
    assert f"{name}: not readable" in said
    assert not (out / "report.html").exists()
