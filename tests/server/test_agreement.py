"""A site whose updates point against the others' is named; honest sites that differ are not."""

import html
import logging
import math
from pathlib import Path

import federation as fed
import numpy as np
import pytest
import reports
import torch
import typer
from caches import make_cache
from flwr.app import Message
from typer.testing import CliRunner

from client import app as client
from server import agreement, commands, fold, status
from server.agreement import Agreement
from sim.engine import InlineGrid
from sscxr import config as configs
from sscxr import runs
from sscxr.federation import codecs
from sscxr.runs import against, read_rounds, read_sites

NAMES = ["anna", "bona", "cara", "dora"]


def test_cosines_are_those_of_the_whole_updates() -> None:
    source = torch.Generator().manual_seed(1)
    common = {"a": torch.randn(300, 50, generator=source), "b": torch.randn(7001, generator=source)}
    updates = {
        name: {key: part + torch.randn(part.shape, generator=source) for key, part in common.items()}
        for name in NAMES
    }
    found = Agreement(common, 3)
    for name, update in updates.items():
        found.add(name, update, 1 + len(name))
    flat = {name: torch.cat([part.flatten() for part in update.values()]) for name, update in updates.items()}
    total = sum(flat.values())
    for name, cosine in found.cosines().items():
        exact = torch.cosine_similarity(flat[name], total - flat[name], dim=0)
        assert cosine == pytest.approx(float(exact), abs=4 / math.sqrt(agreement._PLACES))
    assert sorted(found.cosines()) == NAMES


def test_the_order_of_replies_changes_nothing_and_two_sites_are_not_compared() -> None:
    update = {"a": torch.arange(10.0)}
    one, other = Agreement(update, 0), Agreement(update, 0)
    for place, name in enumerate(NAMES):
        one.add(name, {"a": update["a"] + place}, 2)
        other.add(NAMES[-1 - place], {"a": update["a"] + 3 - place}, 2)
    assert one.cosines() == other.cosines()
    pair = Agreement(update, 0)
    for name in NAMES[:2]:
        pair.add(name, update, 1)
    assert pair.cosines() == {}


def lines(*cosines: dict[str, float]) -> list[dict[str, object]]:
    return [{"round": number + 1, "agreement": found} for number, found in enumerate(cosines)]


def test_one_bad_round_names_nobody() -> None:
    bad, good = {"anna": -0.4, "bona": 0.3}, {"anna": 0.1, "bona": 0.3}
    assert against(lines(bad, bad)) == {}
    assert against(lines(bad, bad, good)) == {}
    assert against(lines(good, bad, {"bona": 0.2}, bad, bad)) == {"anna": -0.4}
    assert against(lines(*[{"anna": -0.04}] * 5)) == {}, "within the error of the sketches"
    assert against([{"round": 1}]) == {}, "a run of before"


def make_sites(folder: Path) -> list[Path]:
    """Sites of waves, at each brighter than at the one before, in its own noise."""
    y, x = np.mgrid[0:32, 0:32] / 32
    files = []
    for place, name in enumerate(NAMES):
        source = np.random.default_rng(place)
        waves = [np.abs(np.sin(6 * (x + at)) * np.cos(5 * (y + at))) for at in source.uniform(size=24)]
        bright = 255 * (0.2 + 0.15 * place) * (0.3 + np.stack(waves)) + 8 * source.standard_normal(
            (24, 32, 32)
        )
        files.append(fed.make_site(folder / name, name, images=24))
        make_cache(
            folder / name / "cache",
            bright.clip(0, 255).astype(np.uint8),
            {"split": (np.arange(24) + 0.5) / 24},
        )
    return files


def app_of_commands() -> typer.Typer:
    app = typer.Typer()
    commands.add(app)
    return app


def flip(reply: Message, request: Message) -> Message:
    """Send the negative of an update."""
    config = configs.loads(str(request.content.config_records[client.RECORD]["config"]))
    update = codecs.decode(fold.bytes_of(reply), "fp32", fed.start(config).encoder)
    opposite = {name: -tensor for name, tensor in update.items()}
    reply.content[client.ARRAYS] = fold.to_arrays(codecs.encode(opposite, "fp32"))
    return reply


@pytest.mark.parametrize("flipped", [["cara"], []])
def test_a_flipped_site_of_four_is_named_in_ledger_log_and_status(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, flipped: list[str]
) -> None:
    caplog.set_level(logging.WARNING, logger="sscxr.server")
    config = fed.settings(
        *(
            "federation.rounds=4",
            "federation.local_epochs=2",
            "pretrain.batch_size=8",
            "federation.uplink=fp32",
        ),
        f"federation.sites=[{','.join(NAMES)}]",
    )
    app, out = fed.damaging(dict.fromkeys(flipped, flip)), tmp_path / "out"
    fed.federation(InlineGrid(app, make_sites(tmp_path / "sites")), config, out).run()
    status.write(out, "finished", done=4, rounds=4)
    assert list(against(read_rounds(out / runs.ROUNDS))) == flipped
    rows = read_sites(out / runs.SITES)
    noted = rows[rows["reason"].fillna("").str.contains("point against the others'")]
    assert [(row.round, row.site) for row in noted.itertuples()] == [(3, name) for name in flipped] + [
        (4, name) for name in flipped
    ]
    said = "the updates of cara point against the other sites'"
    assert caplog.text.count(said) == 2 * len(flipped)
    printed = CliRunner().invoke(app_of_commands(), ["run-status", str(out)])
    assert printed.stderr.count(f"warning: {said}") == len(flipped)
    assert printed.exit_code == 0


def test_the_report_names_the_site() -> None:
    rounds = lines({"north": -0.3}, {"north": -0.4}, {"north": -0.5})
    assert "The updates of north point against the other sites' (mean cosine -0.4" in html.unescape(
        reports.write(rounds=rounds)
    )
    assert "point against" not in reports.write()
