"""A task that is malformed, or of another recipe, run or encoder, is refused before any work."""

from pathlib import Path

import federation as fed
import numpy as np
import pytest
from answers import PATIENT, failure, said, states
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from client import app as client
from client.app import ARRAYS, RECORD
from client.doctor import machine
from client.settings import read_settings
from sim.engine import InlineGrid
from sscxr import config as configs
from sscxr.federation import wire


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
    assert said(reply) == {"site": "anna", "fingerprint": wire.fingerprint(""), "images": 0}


def test_a_site_registered_under_another_name_learns_so_in_its_log_and_from_the_doctor(
    site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = fed.settings()

    def examined() -> list[str]:
        return [check.value for check in machine.name(read_settings(site))]

    assert examined() == []
    assert failure(fed.ask(config, site, "query", encoder=False, registered="bona")) == "name"
    assert "name: anna, the coordinator registered this site's key as bona" in caplog.text
    assert examined() == ["site.yaml has anna, the coordinator registered this key as bona"]
    for name in ("../up", "a b"):
        assert failure(fed.ask(config, site, "query", encoder=False, registered=name)) == "request"
    assert said(fed.ask(config, site, "query", encoder=False, registered="anna"))["site"] == "anna"
    assert examined() == []


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
    record[ARRAYS] = ArrayRecord({ARRAYS: Array(np.zeros(3, np.float32))})
    (reply,) = fed.Grid(client.app, [site]).send_and_receive([Message(record, 1, "train")])
    assert failure(reply) == "request"
