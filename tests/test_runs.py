"""A run's folder, read as the server writes it: whole, half written, damaged, absent."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import sscxr
from server import status
from server.ledger import Ledger, State
from sscxr import config as configs
from sscxr import runs
from sscxr.api import Run
from sscxr.runs import RunError, SiteRow, natural
from sscxr.stages.pretrain import build_encoder

CONFIG = configs.load("smoke", ["encoder.depth=1", "gmml.blocks=[1]", "run.threads=1"])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two rounds of a run of which a third is going on: three sites, one of them late."""
    ledger = Ledger(tmp_path / "run", CONFIG, resume=False)
    encoder = build_encoder(CONFIG).state_dict()
    for number in (1, 2):
        good = SiteRow(number, "NA", 40, 0.5 / number, 0.25, 1.5, 1000, "folded", "")
        late = SiteRow(number, "007", None, None, None, None, None, "late", "no reply in 300 s")
        ledger.log_sites([good, late])
        ledger.log_round(
            {"round": number, "sites": 1, "images": 40, "loss": 0.5 / number, "held_out_loss": None}
            | {"held_out": {"NA": 0.75} if number == 2 else {}, "scores": {}}
        )
        shifted = {name: tensor + number for name, tensor in encoder.items()}
        ledger.commit(State(round=number, encoder=shifted, optimiser={}), keep=1)
    status.write(ledger.out, "running", done=2, rounds=3)
    return ledger.out


def test_the_tables_are_what_was_logged(out: Path) -> None:
    run = sscxr.Run(out)
    assert list(run.sites.columns) == list(runs.SITE_COLUMNS)
    assert run.sites["site"].tolist() == ["NA", "007"] * 2
    assert run.sites["outcome"].tolist() == ["folded", "late"] * 2
    assert run.sites["loss"].dropna().tolist() == [0.5, 0.25]
    assert run.rounds.index.tolist() == [1, 2]
    assert run.rounds["loss"].tolist() == [0.5, 0.25]
    assert not {"held_out", "scores"} & set(run.rounds.columns)
    assert run.held_out.to_dict("records")[0] | {"score": 0} == {
        "round": 2, "site": "NA", "loss": 0.75, "score": 0,
    }  # fmt: skip
    assert run.config == CONFIG
    assert run.probes.empty
    assert run.scores.empty
    assert "gain" in run.probes.columns


def test_a_line_that_is_half_written_is_left_out(out: Path) -> None:
    run = Run(out)
    sites, rounds = run.sites, run.rounds
    for name, text in ((runs.SITES, '3,"NA'), (runs.ROUNDS, '{"round": 3, "lo')):
        with (out / name).open("a") as handle:
            handle.write(text)
    pd.testing.assert_frame_equal(run.sites, sites)
    pd.testing.assert_frame_equal(run.rounds, rounds)
    (out / runs.SITES).write_text("round,site,im")
    assert run.sites.empty


def test_the_encoder_of_a_run_that_goes_on_is_that_of_its_last_round(out: Path) -> None:
    encoder, start = Run(out).encoder(), build_encoder(CONFIG).state_dict()
    assert not encoder.training
    assert (encoder.pretrained_cfg["mean"], encoder.pretrained_cfg["std"]) == ((0.5,), (0.25,))
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor, start[name] + 2)


def test_before_the_first_round_there_is_no_encoder(tmp_path: Path) -> None:
    run = Run(Ledger(tmp_path, CONFIG, resume=False).out)
    assert run.rounds.empty
    assert run.sites.empty
    assert repr(run) == f"Run({str(tmp_path)!r}: 0 sites, starting)"
    with pytest.raises(RunError, match="no round is finished yet"):
        run.encoder()


def test_the_repr_has_counts_and_the_outcome(out: Path) -> None:
    assert repr(Run(out)) == f"Run({str(out)!r}: 2 sites, died after round 2 of 3: " + (
        "its process ended unexpectedly; resume it)"
    )
    with status.held(out):
        assert repr(Run(out)).endswith("2 sites, running after round 2 of 3)")


def test_a_run_that_ends_between_two_looks_has_not_died(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(_: Path) -> bool:
        status.write(out, "finished", done=3, rounds=3)
        return False

    monkeypatch.setattr(runs, "is_locked", ended)
    assert Run(out).status.state == "finished"


def test_probes_and_scores_are_one_row_each(out: Path) -> None:
    probe = {"label": "pneumonia", "cohort": "a", "kind": "linear", "auroc": 0.8, "low": 0.7, "high": 0.9} | {
        "train_images": 9, "train_positives": 4, "test_images": 8, "test_positives": 3, "test_patients": 7,
    }  # fmt: skip
    pair = {"trained": probe, "untrained": probe | {"auroc": 0.6}, "gain": 0.2, "low": 0.1, "high": 0.3}
    (out / runs.PROBES).write_text(json.dumps([pair]))
    found = Run(out).probes.iloc[0]
    assert (found["auroc"], found["low"], found["untrained"]) == (0.8, 0.7, 0.6)
    assert (found["gain"], found["gain_low"], found["gain_high"]) == (0.2, 0.1, 0.3)
    figure = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 20}
    score = {"site": "NA", "figure": "dice", "images": 40, "test_images": 20, "test_patients": 15}
    measured = score | {"federated": figure, "alone": figure, "gap": figure | {"value": 0.0}}
    unmeasured = score | {"site": "b", "federated": None, "alone": None, "gap": None}
    (out / runs.SCORES).write_text(json.dumps([measured, unmeasured]))
    scores = Run(out).scores
    assert scores["federated"].tolist()[0] == 0.9
    assert scores["gap_high"].tolist()[0] == 0.95
    assert scores["gap"].isna().tolist() == [False, True]


def test_what_cannot_be_read_is_one_line(out: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run has started there \(no config\.yaml\)"):
        Run(tmp_path / "nowhere")
    (out / runs.PROBES).write_text("[")
    with pytest.raises(RunError, match=r"probes\.json: not readable as JSON"):
        Run(out).probes  # noqa: B018
    (out / runs.ROUNDS).write_text("{\n")
    with pytest.raises(RunError, match=r"rounds\.jsonl: not readable"):
        Run(out).rounds  # noqa: B018
    whole = (out / runs.SITES).read_bytes()
    for damaged in (bytes(range(256)), whole.replace(b"reason", b"cause"), whole + b'a,"b\nc\n', b"\n\n"):
        (out / runs.SITES).write_bytes(damaged)
        with pytest.raises(RunError, match=r"sites\.csv: not readable"):
            Run(out).sites  # noqa: B018


def test_python_started_beside_a_clone_imports_the_package(tmp_path: Path) -> None:
    (tmp_path / "sscxr").mkdir()  # a clone's folder: without an __init__.py of its own
    code = "import sscxr; print(sscxr.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == Path(sscxr.__file__)


def test_importing_sscxr_is_light_and_tells_what_there_is() -> None:
    code = (
        "import sys, sscxr\n"
        "heavy = {'torch', 'pandas', 'numpy', 'timm', 'flwr', 'requests'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "assert {'Run', 'load_encoder', 'open_cache'} <= set(dir(sscxr))\n"
        "sscxr.Run, sscxr.open_cache\n"
        "assert not {'torch', 'flwr'} & sys.modules.keys()\n"
        "try: sscxr.nonsense\n"
        "except AttributeError as error: assert 'nonsense' in str(error)\n"
        "else: raise AssertionError('a name that there is not')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_names_with_numbers_are_in_people_s_order() -> None:
    names = ["site-10", "site-2", "10", "9", "site-1", "a", "site-1b", ""]
    assert sorted(names, key=natural) == ["", "9", "10", "a", "site-1", "site-1b", "site-2", "site-10"]


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": 3}', '{"task": "yes"}', '{"other": "x"}'])
def test_words_that_were_damaged_are_one_line(tmp_path: Path, text: str) -> None:
    assert runs.read_words(tmp_path) == runs.Words()  # of a run that was made before they were kept
    (tmp_path / runs.WORDS).write_text(text)
    with pytest.raises(RunError, match=r"words\.json"):
        runs.read_words(tmp_path)
