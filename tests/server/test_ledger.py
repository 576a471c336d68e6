"""The run's folder: committed rounds come back, all else leaves no trace, every failure is one line."""

import csv
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from server.ledger import Ledger, LedgerError, State
from sscxr import config as configs
from sscxr.config import Config
from sscxr.runs import SiteRow


@pytest.fixture(scope="module")
def config() -> Config:
    return configs.load("smoke")


def state(round_number: int) -> State:
    source = torch.Generator().manual_seed(round_number)
    return State(
        round=round_number,
        encoder={"z": torch.randn(4, 3, generator=source), "a": torch.randn(2, generator=source).t()},
        optimiser={"a": torch.randn(2, generator=source)},
        bases={"site-1": f"r{round_number:05d}-a00"},
        roster=["site-1", "site-2"],
        images={"site-1": 40},
        counts={"site-1": {"sex": {"F": 20}}},
    )


def row(round_number: int, reason: str = "", **values: object) -> SiteRow:
    known = {"images": 40, "loss": 0.5, "update_norm": 1.0, "seconds": 2.0, "bytes": 80, "outcome": "folded"}
    return SiteRow(round=round_number, site="site-1", reason=reason, **{**known, **values})  # type: ignore[arg-type]


def play(ledger: Ledger, rounds: range, keep: int = 3) -> None:
    for number in rounds:
        ledger.log_sites([row(number)])
        ledger.log_round({"round": number})
        ledger.commit(state(number + 1), keep=keep)


def texts(out: Path) -> tuple[str, str]:
    return (out / "rounds.jsonl").read_text(), (out / "sites.csv").read_text()


def one_line(error: pytest.ExceptionInfo[LedgerError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_new_run_has_no_state(tmp_path: Path, config: Config) -> None:
    assert Ledger(tmp_path / "out", config, resume=False).last() is None


def test_resuming_what_was_never_started_starts_it(tmp_path: Path, config: Config) -> None:
    ledger = Ledger(tmp_path / "out", config, resume=True)
    assert ledger.last() is None
    assert configs.loads((tmp_path / "out" / "config.yaml").read_text()) == config


def test_the_last_commit_comes_back_as_it_was(tmp_path: Path, config: Config) -> None:
    play(Ledger(tmp_path, config, resume=False), range(3))
    found, expected = Ledger(tmp_path, config, resume=True).last(), state(3)
    assert found is not None
    for name in ("round", "bases", "roster", "images", "counts"):
        assert getattr(found, name) == getattr(expected, name)
    for tensors, wanted in ((found.encoder, expected.encoder), (found.optimiser, expected.optimiser)):
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)


def test_the_encoder_of_a_checkpoint_is_the_same_bytes_whatever_the_order_of_its_names(
    tmp_path: Path, config: Config
) -> None:
    written = []
    for number, order in enumerate((sorted, lambda names: sorted(names, reverse=True))):
        ledger, saved = Ledger(tmp_path / str(number), config, resume=False), state(1)
        saved.encoder = {name: saved.encoder[name] for name in order(saved.encoder)}
        ledger.commit(saved, keep=1)
        written.append((ledger.checkpoints / "round-00001" / "encoder.safetensors").read_bytes())
    assert written[0] == written[1]


def test_text_after_the_commit_is_cut_off(tmp_path: Path, config: Config) -> None:
    ledger = Ledger(tmp_path, config, resume=False)
    play(ledger, range(2))
    committed = texts(tmp_path)
    ledger.log_sites([row(2)])
    ledger.log_round({"round": 2})
    with ledger.rounds_file.open("a") as handle:
        handle.write('{"round": 3, "half a li')
    assert texts(tmp_path) != committed
    Ledger(tmp_path, config, resume=True).last()
    assert texts(tmp_path) == committed


def test_text_before_the_first_commit_is_cut_off_and_the_heading_comes_once(
    tmp_path: Path, config: Config
) -> None:
    ledger = Ledger(tmp_path, config, resume=False)
    ledger.log_sites([row(0, reason="of a run that was killed")])
    ledger = Ledger(tmp_path, config, resume=True)
    assert ledger.last() is None
    play(ledger, range(2))
    lines = ledger.sites_file.read_text().splitlines()
    assert lines[0] == "round,site,images,loss,update_norm,seconds,bytes,outcome,reason"
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1"]


@pytest.mark.parametrize("written", [(), ("encoder.safetensors",), ("encoder.safetensors", "state.json")])
def test_half_a_checkpoint_is_ignored_and_cleared(
    tmp_path: Path, config: Config, written: tuple[str, ...]
) -> None:
    ledger = Ledger(tmp_path, config, resume=False)
    play(ledger, range(2))
    half = ledger.checkpoints / ".round-00003.partial"
    half.mkdir()
    for name in written:
        (half / name).write_bytes(b"half")
    ledger = Ledger(tmp_path, config, resume=True)
    found = ledger.last()
    assert found is not None
    assert found.round == 2
    play(ledger, range(2, 3))
    assert not half.exists()


def test_what_a_killed_writer_left_is_cleared_wherever_it_lies(tmp_path: Path, config: Config) -> None:
    play(Ledger(tmp_path, config, resume=False), range(1))
    half = [tmp_path / ".status.json.tmp", tmp_path / "pictures" / ".round-00001.png.tmp"]
    for file in half:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"half")
    before = {path for path in tmp_path.rglob("*") if path not in half}
    Ledger(tmp_path, config, resume=True)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5]), (0, [5])])
def test_old_checkpoints_are_pruned(tmp_path: Path, config: Config, keep: int, left: list[int]) -> None:
    ledger = Ledger(tmp_path, config, resume=False)
    play(ledger, range(5), keep=keep)
    assert [int(folder.name[-5:]) for folder in sorted(ledger.checkpoints.glob("round-*"))] == left


# ---- what cannot be used


def test_a_run_that_is_there_is_not_overwritten(tmp_path: Path, config: Config) -> None:
    play(Ledger(tmp_path, config, resume=False), range(1))
    before = texts(tmp_path)
    with pytest.raises(LedgerError, match=r"already has a run; .*resume=") as error:
        Ledger(tmp_path, config, resume=False)
    one_line(error)
    assert texts(tmp_path) == before


def test_other_settings_are_named_by_their_keys(tmp_path: Path, config: Config) -> None:
    Ledger(tmp_path, config, resume=False)
    other = configs.load("smoke", ["pretrain.lr=0.5", "federation.server.momentum=0.5"])
    with pytest.raises(
        LedgerError, match=r"other settings \(federation\.server\.momentum, pretrain\.lr\)"
    ) as error:
        Ledger(tmp_path, other, resume=True)
    one_line(error)
    assert configs.loads((tmp_path / "config.yaml").read_text()) == config


@pytest.mark.parametrize("text", ["", "pretrain: {lr: 1}", "a: [1"])
def test_settings_that_were_damaged_are_one_line(tmp_path: Path, config: Config, text: str) -> None:
    Ledger(tmp_path, config, resume=False)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(LedgerError, match=r"config\.yaml") as error:
        Ledger(tmp_path, config, resume=True)
    one_line(error)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("encoder.safetensors", b""),
        ("encoder.safetensors", None),
        ("optimiser.safetensors", b"nonsense"),
        ("state.json", b"{"),
        ("state.json", b"[]"),
        ("state.json", b'{"format_version": 1}'),
        ("state.json", b"\xff\xfe"),
    ],
)
def test_a_damaged_checkpoint_is_one_line_that_names_it(
    tmp_path: Path, config: Config, name: str, content: bytes | None
) -> None:
    ledger = Ledger(tmp_path, config, resume=False)
    play(ledger, range(2))
    before, file = texts(tmp_path), ledger.checkpoints / "round-00002" / name
    file.write_bytes(file.read_bytes()[:40] if content is None else content)
    with pytest.raises(LedgerError, match=r"round-00002 is damaged .*delete that folder") as error:
        ledger.last()
    one_line(error)
    assert texts(tmp_path) == before, "nothing is cut off by the length of a damaged checkpoint"


def test_deleting_the_damaged_checkpoint_goes_on_from_the_one_before(tmp_path: Path, config: Config) -> None:
    ledger = Ledger(tmp_path, config, resume=False)
    play(ledger, range(1))
    one = texts(tmp_path)
    play(ledger, range(1, 2))
    for file in (ledger.checkpoints / "round-00002").iterdir():
        file.unlink()
    (ledger.checkpoints / "round-00002").rmdir()
    found = Ledger(tmp_path, config, resume=True).last()
    assert found is not None
    assert found.round == 1
    assert texts(tmp_path) == one


def test_a_checkpoint_of_another_format_says_so(tmp_path: Path, config: Config) -> None:
    ledger = Ledger(tmp_path, config, resume=False)
    play(ledger, range(1))
    file = ledger.checkpoints / "round-00001" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 99}))
    with pytest.raises(LedgerError, match="format version 99, not 1") as error:
        ledger.last()
    one_line(error)


# ---- attempts


def test_no_two_attempts_at_a_round_share_a_number(tmp_path: Path, config: Config) -> None:
    """Each is taken by a process that is killed at once."""
    numbers = []
    for resume in (False, True, True, True):
        ledger = Ledger(tmp_path, config, resume=resume)
        numbers += [ledger.next_attempt(0), ledger.next_attempt(0)]
    assert numbers == list(range(8))
    assert [ledger.next_attempt(1), ledger.next_attempt(1), ledger.next_attempt(2)] == [0, 1, 0]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"round": 0}', '{"round": 0, "attempt": null}'])
def test_a_damaged_attempt_file_starts_anew(tmp_path: Path, config: Config, text: str) -> None:
    ledger = Ledger(tmp_path, config, resume=False)
    (ledger.checkpoints / "attempt.json").write_text(text)
    assert [ledger.next_attempt(0), ledger.next_attempt(0)] == [0, 1]


# ---- the table


def test_a_row_is_read_back(tmp_path: Path, config: Config) -> None:
    ledger = Ledger(tmp_path, config, resume=False)
    ledger.log_sites([row(0, reason='he said "no", twice\nthen left'), row(1, images=None, loss=None)])
    with ledger.sites_file.open(newline="") as handle:
        one, two = csv.DictReader(handle)
    assert one["reason"] == 'he said "no", twice then left', "a row is a line"
    assert (one["images"], one["loss"], two["images"], two["loss"]) == ("40", "0.5", "", "")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_text_that_a_spreadsheet_would_run_is_quoted(tmp_path: Path, config: Config, text: str) -> None:
    ledger = Ledger(tmp_path, config, resume=False)
    ledger.log_sites([row(0, reason=text)])
    with ledger.sites_file.open(newline="") as handle:
        (read,) = csv.DictReader(handle)
    assert read["reason"] == f"'{text.strip()}"


def test_the_checkpoint_holds_plain_tensors_and_json(tmp_path: Path, config: Config) -> None:
    ledger = Ledger(tmp_path, config, resume=False)
    play(ledger, range(1))
    folder = ledger.checkpoints / "round-00001"
    assert sorted(file.name for file in folder.iterdir()) == [
        *("encoder.safetensors", "optimiser.safetensors", "state.json"),
    ]
    assert safetensors.torch.load_file(folder / "encoder.safetensors").keys() == {"a", "z"}
