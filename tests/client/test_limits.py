"""The limits of `site.yaml`: what is beyond one is refused in one line: the setting, its value, the limit."""

import dataclasses
from pathlib import Path

import federation as fed
import numpy as np
import pytest
from answers import failure, said
from caches import make_cache

from client import limits, policy
from client.doctor import data, machine
from client.limits import Limits
from client.settings import SiteSettings, read_settings
from client.site import Site
from sscxr.federation import floors

# Ten images, two of them held out: eight to train on, in one batch.
BEYOND = [
    ("objectives: [mae]", "pretrain.objective=gmml; site.yaml allows objectives=['mae']"),
    ("limits: {batch_size: [17, 64]}", "pretrain.batch_size=16; site.yaml allows limits.batch_size=[17, 64]"),
    ("limits: {batch_size: [1, 15]}", "pretrain.batch_size=16; site.yaml allows limits.batch_size=[1, 15]"),
    (
        "limits: {batch_size: [9, 64]}",
        "steps of 8 of this site's 8 images; site.yaml allows limits.batch_size=",
    ),
    ("limits: {img_size: [64, 512]}", "encoder.img_size=32; site.yaml allows limits.img_size=[64, 512]"),
    ("limits: {img_size: [8, 31]}", "encoder.img_size=32; site.yaml allows limits.img_size=[8, 31]"),
    ("limits: {million_parameters: [0, 0.4]}", "a model of 0.5"),
    (
        "limits: {million_parameters: [1, 5]}",
        "million parameters; site.yaml allows limits.million_parameters=[1.0",
    ),
    (
        "limits: {round_steps: [3, 9]}",
        "federation.local_epochs=2 of 8 images, rounds of 2 steps; site.yaml allows",
    ),
    ("limits: {round_steps: [1, 1]}", "rounds of 2 steps; site.yaml allows limits.round_steps=[1, 1]"),
    ("limits: {round_images: [1, 15]}", "rounds that use 16; site.yaml allows limits.round_images=[1, 15]"),
    ("limits: {round_images: [17, 99]}", "rounds that use 16; site.yaml allows limits.round_images=[17, 99]"),
]
CONFIG = fed.settings("federation.local_epochs=2")


def allow(site: Path, line: str) -> None:
    site.write_text(f"{site.read_text()}\n{line}\n")


@pytest.mark.parametrize(("line", "reason"), BEYOND)
def test_what_is_beyond_a_limit_is_refused_before_a_run_joins(
    site: Path, caplog: pytest.LogCaptureFixture, line: str, reason: str
) -> None:
    allow(site, line)
    assert failure(fed.ask(CONFIG, site, "query", encoder=False)) == "not allowed"
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()
    assert failure(fed.ask(CONFIG, site)) == "not allowed"


def test_what_is_at_the_limits_is_done(site: Path) -> None:
    allow(
        site,
        "objectives: [gmml]\nlimits: {batch_size: [8, 16], img_size: [32, 32], round_steps: [2, 2],"
        " round_images: [16, 16], million_parameters: [0.4, 0.6], rounds_a_day: 1, round_seconds: 600}",
    )
    assert said(fed.ask(CONFIG, site))["steps"] == 2


def test_limits_that_no_run_can_meet_are_refused_as_settings(site: Path) -> None:
    for line in ("batch_size: [64, 16]", "img_size: [8]", "round_steps: [0, 5]", "rounds_a_day: -1"):
        text = site.read_text()
        allow(site, f"limits: {{{line}}}")
        name = line.partition(":")[0]
        with pytest.raises(Exception, match=f"limits.{name}=") as error:
            read_settings(site)
        assert "\n" not in str(error.value)
        site.write_text(text)


def test_by_default_every_recipe_of_the_ranges_is_within() -> None:
    large = fed.settings("encoder.img_size=4096", "encoder.patch_size=16", "pretrain.batch_size=65536")
    for config in (large, fed.settings("pretrain.batch_size=8", "federation.local_epochs=0.001")):
        assert limits.of_recipe(Limits(), config) == ""
        for images in (8, 10**6):
            assert limits.of_rounds(Limits(), config, images) == ""


def test_a_round_s_steps_are_those_of_every_round_of_the_run() -> None:
    """Two and a half batches a round: two steps in one, three in the next."""
    config = fed.settings("federation.local_epochs=0.5", "federation.rounds=4")
    assert "rounds of 3 steps" in limits.of_rounds(Limits(round_steps=[1, 2]), config, 80)
    assert "rounds of 2 steps" in limits.of_rounds(Limits(round_steps=[3, 9]), config, 80)
    assert limits.of_rounds(Limits(round_steps=[2, 3]), config, 80) == ""


def test_steps_of_gradients_are_a_share_of_the_images() -> None:
    config = fed.settings(
        *("federation.sends=gradients", "federation.share_head=true", "federation.server.name=adamw"),
        *("federation.moments=local", "federation.local_epochs=0.25"),
    )
    assert "steps of 25" in limits.of_rounds(Limits(batch_size=[26, 99]), config, 100)
    assert "steps of 25" in limits.of_rounds(Limits(batch_size=[1, 24]), config, 100)
    assert limits.of_rounds(Limits(batch_size=[25, 25], round_steps=[1, 1]), config, 100) == ""


def test_a_recipe_that_draws_a_few_images_is_refused_by_name(site: Path) -> None:
    config = fed.settings("run.stage=classify", "classify.labels=[edema]", "classify.per_class=5")
    config.finetune.batch_size = 16
    assert floors.problem(config).startswith("classify.per_class=5: in a federation 0")
    config.classify.per_class = 0
    assert floors.problem(config) == ""


@pytest.mark.parametrize(("positives", "refused"), [(0, False), (3, True), (30, False)])
def test_a_label_of_a_few_patients_is_not_learned(tmp_path: Path, positives: int, refused: bool) -> None:
    """Fifty patients of two images to train on: one who is a class alone would be most of the head's update."""
    number = np.arange(120)
    index = {
        "group": [f"g{n // 2}" for n in number],
        "split": np.where(number < 100, 0.9, 0.01),
        "label:edema": (number < 2 * positives).astype(float),
    }
    make_cache(tmp_path / "cache", np.full((120, 8, 8), 9, np.uint8), index)
    site = Site(SiteSettings("a", str(tmp_path / "cache"), str(tmp_path / "state"), min_cell=10))
    config = fed.settings("run.stage=classify", "classify.labels=[edema]", "finetune.batch_size=16")
    if refused:
        with pytest.raises(
            Exception, match=r"classify.labels=\['edema'\]: a class of these has images of fewer"
        ):
            site.training_rows(config)
    else:
        assert len(site.training_rows(config)) == 100


def test_the_doctor_names_what_site_yaml_forbids(site: Path) -> None:
    settings = read_settings(site)
    (check,) = machine.policy(settings, CONFIG)
    assert check.state == "ok"
    (check,) = data.rounds(settings, CONFIG)
    assert (check.state, check.value) == ("ok", "each update mixes at least 8 images")
    tight = dataclasses.replace(settings, limits=Limits(img_size=[64, 99], round_steps=[5, 9]))
    (check,) = machine.policy(tight, CONFIG)
    assert (check.state, check.value) == ("failed", policy.forbidden(tight, CONFIG))
    (check,) = data.rounds(tight, CONFIG)
    assert check.state == "failed"
    assert "rounds of 2 steps; site.yaml allows limits.round_steps=[5, 9]" in check.value
    daily = dataclasses.replace(settings, limits=Limits(rounds_a_day=3))
    (check,) = machine.policy(daily, CONFIG)
    assert check.value.endswith("0 of limits.rounds_a_day=3 updates left in 24 hours")
