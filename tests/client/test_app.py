"""The ClientApp: whatever goes wrong becomes a fixed word, and a retry is as good as a first try."""

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
import pytest
import safetensors.torch
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from omegaconf import OmegaConf

from client import app as client
from client.app import ARRAYS, RECORD
from sim.engine import InlineGrid
from sscxr import codecs, wire
from sscxr import config as configs
from sscxr.training.loop import NonFiniteLossError, OutOfTimeError
from sscxr.training.parts import Parts
from sscxr.training.pretrain import SiteTraining

PATIENT = "DOE^JANE"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return fed.make_site(tmp_path / "anna", "anna", images=10)


def said(reply: Message) -> dict[str, Any]:
    assert not reply.has_error()
    return dict(reply.content.config_records[RECORD])


def failure(reply: Message) -> str:
    """The one word, in a reply that holds nothing else."""
    assert set(reply.content) == {RECORD}
    read = wire.from_record(wire.Failure, said(reply))
    assert read.failure in wire.FAILURES
    assert PATIENT not in str(reply)
    return read.failure


def update(reply: Message) -> dict[str, bytes]:
    return {name: array.data for name, array in reply.content.array_records[ARRAYS].items()}


def states(site: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (site.parent / "state").rglob("*") if file.is_file()}


# ---- what it says


def test_hello_says_who_it_is_and_no_more(site: Path) -> None:
    reply = fed.ask(fed.settings(), site, "query", encoder=False)
    hello = wire.from_record(wire.Hello, said(reply))
    assert hello == wire.Hello("anna", wire.fingerprint(configs.recipe_hash(fed.settings())))
    assert set(reply.content) == {RECORD}
    assert not states(site)


def test_training_replies_with_the_change_and_keeps_the_rest(site: Path) -> None:
    config = fed.settings("federation.local_epochs=3", "federation.uplink=fp32")
    reply = fed.ask(config, site)
    read = wire.from_record(wire.TrainReply, said(reply))
    assert (read.site, read.round, read.attempt, read.images, read.steps) == ("anna", 0, 0, 8, 3)
    assert read.state == "new"
    assert set(reply.content) == {RECORD, ARRAYS}
    arrays = {name: array.numpy() for name, array in reply.content.array_records[ARRAYS].items()}
    assert codecs.norm(codecs.decode(arrays, "fp32", fed.start(config).encoder)) > 0
    kept = safetensors.torch.load(states(site)["r00000-a00.safetensors"])
    assert {name.split(".")[0] for name in kept} == {"head", "exp_avg", "exp_avg_sq", "step"}
    assert not any(name.startswith("encoder.") for name in kept), "what is shared is not kept beside"


def test_evaluation_trains_nothing_and_keeps_no_more_than_what_it_told(site: Path) -> None:
    config = fed.settings()
    first, second = (said(fed.ask(config, site, "evaluate")) for _ in range(2))
    assert first == second
    read = wire.from_record(wire.EvaluateReply, first)
    assert read.images == 2
    assert read.loss > 0
    assert set(states(site)) == {"counts.json"}


def test_evaluation_without_held_out_images_needs_no_encoder(site: Path) -> None:
    reply = fed.ask(fed.settings("data.test_share=0"), site, "evaluate", encoder=False)
    read = wire.from_record(wire.EvaluateReply, said(reply))
    assert (read.images, read.loss) == (0, 0.0)


# ---- what it refuses


def test_a_task_of_another_recipe_is_refused_before_any_work(site: Path) -> None:
    config, other = fed.settings(), fed.settings("pretrain.lr=0.5")
    assert failure(fed.ask(config, site, config=configs.dumps(other))) == "fingerprint"
    assert failure(fed.ask(config, site, fingerprint="{}")) == "fingerprint"
    assert not states(site)


MALFORMED = pytest.mark.parametrize(
    "fields",
    [
        {"round": "3"},
        {"round": 1.5},
        {"budget": "long"},
        {"budget": float("nan")},
        {"patient": PATIENT},
        {"config": ""},
        {"config": "a: [1"},
        {"config": f"{PATIENT}: 1"},
        {"config": "pretrain: {lr: fast}"},
    ],
    ids=str,
)


@MALFORMED
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_malformed_task_is_refused(site: Path, kind: str, fields: dict[str, object]) -> None:
    assert failure(fed.ask(fed.settings(), site, kind, encoder=False, **fields)) == "request"


@MALFORMED
def test_a_server_whose_question_cannot_be_read_learns_the_code_that_this_is(
    site: Path, fields: dict[str, object]
) -> None:
    reply = fed.ask(fed.settings(), site, "query", encoder=False, **fields)
    assert said(reply) == {"site": "anna", "fingerprint": wire.fingerprint("")}


# ---- what this hospital allows


def allow(site: Path, **values: object) -> None:
    settings = OmegaConf.merge(OmegaConf.load(site), values)
    site.write_text(OmegaConf.to_yaml(settings))


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"paused": True}, "paused"),
        ({"stages": []}, "not allowed"),
        ({"threads": 1}, "not allowed"),
        ({"min_images": 9}, "few images"),
        ({"min_cell": 9}, "few images"),
        ({"dp": {"enabled": True}}, "settings"),
        ({"device": "cuda:77"}, "request"),
    ],
)
def test_what_the_site_does_not_allow_is_refused_and_it_can_come_back(
    site: Path, values: dict[str, object], word: str
) -> None:
    config, before = fed.settings("run.threads=2"), site.read_text()
    allow(site, **values)
    for kind in ("train", "evaluate", "query"):
        if word != "request" or kind == "train":
            assert failure(fed.ask(config, site, kind)) == word
    assert not states(site)
    site.write_text(before)
    assert said(fed.ask(config, site))["images"] == 8


@pytest.mark.parametrize("metrics", [[], ["counts"], ["held_out_loss"], ["held_out_loss", "counts"]])
def test_only_the_metrics_that_the_site_allows_are_told(site: Path, metrics: list[str]) -> None:
    allow(site, metrics=metrics)
    told = said(fed.ask(fed.settings(), site, "evaluate"))
    assert (told["images"] > 0) == (told["loss"] > 0) == ("held_out_loss" in metrics)
    assert (told["counts"] != "{}") == ("counts" in metrics)


def test_a_full_disk_is_told_and_the_state_before_is_kept(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fed.settings()
    fed.ask(config, site)
    kept = states(site)

    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("client.site.safetensors.torch.save_file", full)
    assert failure(fed.ask(config, site, round=1, base="r00000-a00")) == "disk"
    assert states(site) == kept


def test_training_is_held_to_the_memory_that_the_site_allows(site: Path) -> None:
    allow(site, memory_gb=0.05)
    code = (
        "import federation as fed, sys; from pathlib import Path; from sscxr.wire import RECORD\n"
        "config = fed.settings('encoder.depth=12', 'encoder.name=vit_base_patch16_224')\n"
        "print(dict(fed.ask(config, Path(sys.argv[1])).content.config_records[RECORD])['failure'])"
    )
    here = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code, str(site)],
        env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.strip() == "memory", run.stderr


@pytest.mark.parametrize("fields", [{"run": "../up"}, {"run": ""}, {"run": "a b"}], ids=str)
def test_a_run_whose_name_leads_elsewhere_is_refused(site: Path, fields: dict[str, object]) -> None:
    assert failure(fed.ask(fed.settings(), site, **fields)) == "request"
    assert not states(site)


def test_a_message_without_its_records_is_refused(site: Path) -> None:
    (reply,) = InlineGrid(client.app, [site]).send_and_receive([Message(RecordDict(), 1, "train")])
    assert failure(reply) == "request"
    assert failure(fed.ask(fed.settings(), site, encoder=False)) == "request"


def test_an_encoder_of_another_shape_is_refused(site: Path) -> None:
    config = fed.settings()
    fingerprint = wire.fingerprint(configs.recipe_hash(config))
    task = wire.Task(config.run.name, 0, 0, "", configs.dumps(config), fingerprint, 60.0)
    record = RecordDict({RECORD: ConfigRecord(dict(wire.to_record(task)))})
    record[ARRAYS] = ArrayRecord({"norm.bias": Array(np.zeros(3, np.float32))})
    (reply,) = InlineGrid(client.app, [site]).send_and_receive([Message(record, 1, "train")])
    assert failure(reply) == "request"


# ---- what goes wrong at the site


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (RuntimeError(f"cannot read {PATIENT}.dcm"), "internal"),
        (ValueError(PATIENT), "internal"),
        (OSError(2, "no such file", f"/export/{PATIENT}.dcm"), "internal"),
        (MemoryError(PATIENT), "memory"),
        (torch.OutOfMemoryError(PATIENT), "memory"),
        (NonFiniteLossError(f"loss nan; {PATIENT}"), "loss"),
        (OutOfTimeError(PATIENT), "time"),
        (RecursionError(PATIENT), "internal"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_the_text_of_an_exception_stays_in_the_log_of_the_site(
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    word: str,
) -> None:
    def fail(*args: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(SiteTraining, "train_round", fail)
    with caplog.at_level(logging.ERROR, logger="sscxr.site"):
        assert failure(fed.ask(fed.settings(), site)) == word
    assert PATIENT in caplog.text
    assert not states(site), "nothing is kept of training that failed"


@pytest.mark.parametrize(("codec", "value"), [("fp16", 1e6), ("int8", 1e9), ("int8", float("nan"))])
def test_an_update_that_the_codec_cannot_hold_is_told_as_such(
    site: Path, monkeypatch: pytest.MonkeyPatch, codec: str, value: float
) -> None:
    def far(self: Parts) -> dict[str, torch.Tensor]:
        return {name: torch.full_like(tensor, value) for name, tensor in real(self).items()}

    real = Parts.shared
    monkeypatch.setattr(Parts, "shared", far)
    assert failure(fed.ask(fed.settings(f"federation.uplink={codec}"), site)) == "codec"
    assert not states(site)


def no_cache(site: Path) -> None:
    (site.parent / "cache" / "summary.json").unlink()


def no_settings(site: Path) -> None:
    site.unlink()


def bad_settings(site: Path) -> None:
    site.write_text(f"name: {PATIENT}\ncache: c\nstate: s\n")


@pytest.mark.parametrize(
    ("damage", "word", "name"),
    [
        (no_cache, "cache", "anna"),
        (no_settings, "settings", "unknown"),
        (bad_settings, "settings", "unknown"),
    ],
)
def test_a_site_that_cannot_open_says_so_in_fixed_words(
    site: Path, damage: Callable[[Path], None], word: str, name: str
) -> None:
    damage(site)
    reply = fed.ask(fed.settings(), site, "query", encoder=False)
    assert failure(reply) == word
    assert said(reply)["site"] == name


def test_too_few_images_are_told_without_their_number(site: Path) -> None:
    for kind in ("query", "train", "evaluate"):
        reply = fed.ask(fed.settings("privacy.min_cell=9"), site, kind)
        assert said(reply) == {"site": "anna", "failure": "few images"}


def test_a_node_without_a_site_says_so(monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    grid = InlineGrid(client.app, [site])
    grid._contexts[1].node_config.clear()
    (reply,) = grid.send_and_receive([Message(RecordDict(), 1, "query")])
    assert failure(reply) == "settings"


# ---- attempts


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_a_retry_equals_a_first_try_bit_for_bit(tmp_path: Path, codec: str) -> None:
    """Round 0 folded; round 1 tried, killed or dropped twice, then tried again: as if it had been the first."""
    config = fed.settings("federation.rounds=3", "encoder.drop_path=0.3", f"federation.uplink={codec}")
    plain, retried = (fed.make_site(tmp_path / name / "anna", "anna", images=6) for name in ("p", "r"))
    for site in (plain, retried):
        fed.ask(config, site)
    base = wire.generation(0, 0)
    expected = fed.ask(config, plain, round=1, base=base)
    for attempt in (0, 1):
        fed.ask(config, retried, round=1, attempt=attempt, base=base)
    found = fed.ask(config, retried, round=1, attempt=2, base=base)
    assert said(found)["state"] == said(expected)["state"] == "kept"
    assert update(found) == update(expected)
    assert said(found)["loss"] == said(expected)["loss"]
    assert states(plain).keys() == {"r00000-a00.safetensors", "r00001-a00.safetensors"}
    assert states(retried).keys() == {"r00000-a00.safetensors", "r00001-a02.safetensors"}
    assert states(retried)["r00001-a02.safetensors"] == states(plain)["r00001-a00.safetensors"]


def test_what_int8_left_out_of_a_folded_update_is_sent_with_the_next(tmp_path: Path) -> None:
    """Beside a site that trains alike and sends fp32: what arrived and what is carried make up what was sent."""
    config, whole = (
        fed.settings("federation.rounds=3", f"federation.uplink={codec}") for codec in ("int8", "fp32")
    )
    site, other = (fed.make_site(tmp_path / name / "anna", "anna", images=6) for name in ("i", "f"))
    like = fed.start(config).encoder

    def trained(
        number: int, attempt: int, base: str
    ) -> tuple[codecs.Tensors, codecs.Tensors, codecs.Tensors]:
        asked = {"round": number, "attempt": attempt, "base": base}
        short, full = fed.ask(config, site, **asked), fed.ask(whole, other, **asked)
        kept = safetensors.torch.load(states(site)[f"{wire.generation(number, attempt)}.safetensors"])
        carried = {name: kept[f"residual.{name}"] for name in like}
        arrays, exact = (
            {n: a.numpy() for n, a in r.content.array_records[ARRAYS].items()} for r in (short, full)
        )
        return codecs.decode(arrays, "int8", like), carried, codecs.decode(exact, "fp32", like)

    arrived, left, sent = trained(0, 0, "")
    assert codecs.norm(left) > 0
    for name in like:
        torch.testing.assert_close(arrived[name] + left[name], sent[name], rtol=1e-6, atol=1e-9)
    trained(1, 0, wire.generation(0, 0))  # refused or dropped: what it left out is not carried
    arrived, now, sent = trained(1, 1, wire.generation(0, 0))
    for name in like:
        torch.testing.assert_close(arrived[name] + now[name], sent[name] + left[name], rtol=1e-6, atol=1e-9)


def test_training_goes_on_from_what_was_kept(site: Path) -> None:
    config = fed.settings()
    fed.ask(config, site)
    kept = fed.ask(config, site, round=1, base=wire.generation(0, 0))
    anew = fed.ask(config, site, round=1)
    assert (said(kept)["state"], said(anew)["state"]) == ("kept", "new")
    assert update(kept) != update(anew)


def test_lost_state_is_said_and_is_a_start_anew(site: Path) -> None:
    config = fed.settings()
    fed.ask(config, site)
    file = next((site.parent / "state").rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    lost = fed.ask(config, site, round=1, base=wire.generation(0, 0))
    assert said(lost)["state"] == "lost"
    assert update(lost) == update(fed.ask(config, site, round=1))


def test_rounds_and_sites_draw_other_numbers(tmp_path: Path) -> None:
    config = fed.settings()
    one, other = (fed.make_site(tmp_path / name, name, images=6) for name in ("one", "other"))
    updates = [update(fed.ask(config, site, round=number)) for site in (one, other) for number in (0, 1)]
    assert len({frozenset(each.items()) for each in updates}) == 4


def test_work_at_a_site_leaves_the_global_generator_alone(site: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fed.ask(fed.settings("encoder.drop_path=0.3"), site)
    assert torch.equal(torch.get_rng_state(), before)
