"""Settings: every mistake is one line that names the key; shipped recipes are whole; the recipe's hash."""

import dataclasses
import functools
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.optimisers import server_optimiser
from sscxr import config as configs
from sscxr import stages
from sscxr.config import ConfigError
from sscxr.config.schema import FederationConfig
from sscxr.federation.codecs import CODECS
from sscxr.objectives import OBJECTIVES
from sscxr.stages.pretrain import build_objective
from sscxr.training import moments

RECIPES = sorted(file.stem for file in (Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


@functools.cache
def smoke_hash(*overrides: str) -> str:
    return configs.recipe_hash(configs.load("smoke", overrides))


def refused(*overrides: str, file: str | Path = "smoke") -> str:
    """The one line that a person reads."""
    with pytest.raises(ConfigError) as error:
        stages.load_config(file, overrides)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


# ---- shipped recipes


def test_the_recipes_that_are_shipped() -> None:
    assert {"default", "smoke", "demo", "sscxr"} <= set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_shipped_recipe_is_whole_and_its_blocks_are_blocks(recipe: str) -> None:
    config = configs.load(recipe)
    encoder, gmml = config.encoder, config.gmml
    assert encoder.img_size // encoder.patch_size >= 8, "at least 8 x 8 tokens"
    assert gmml.max_block * encoder.img_size > 2 * max(gmml.align, 1), "blocks, not single patches"
    assert config.data.cache_size >= encoder.img_size, "crops keep detail"
    assert config.augment.flip == 0.0, "a mirror image swaps the heart's side"
    assert config.run.name == recipe.replace("default", "run")


def test_a_recipe_by_path_is_laid_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("pretrain:\n  lr: 0.25\n")
    mine, default = configs.load(file), configs.load()
    assert mine.pretrain.lr == 0.25
    mine.pretrain.lr = default.pretrain.lr
    assert mine == default


def test_overrides_win_over_the_recipe_and_the_last_over_the_first() -> None:
    config = configs.load(
        "demo", ["pretrain.lr=0.5", "encoder.depth=3", "pretrain.lr=1e-3", "gmml.blocks=[1,3]"]
    )
    assert (config.pretrain.lr, config.encoder.depth, config.gmml.blocks) == (1e-3, 3, [1, 3])
    assert configs.load("demo", ["encoder.depth=null"]).encoder.depth is None


# ---- mistakes


@pytest.mark.parametrize(
    ("override", "key", "near"),
    [
        ("pretrain.lrr=1", "pretrain.lrr", "pretrain.lr"),
        ("train.lr=1", "train", "pretrain"),
        ("pretrain.batchsize=1", "pretrain.batchsize", "pretrain.batch_size"),
        ("federation.server.momentun=1", "federation.server.momentun", "federation.server.momentum"),
        ("federation.momentum=1", "federation.momentum", "federation.server.momentum"),
        ("rounds=3", "rounds", "federation.rounds"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, key: str, near: str) -> None:
    line = refused(override)
    assert f"unknown setting {key!r}; did you mean {near!r}?" in line
    assert override in line


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("pretrain.lr=fast", "pretrain.lr"),
        ("federation.rounds=2.5", "federation.rounds"),
        ("federation.rounds=null", "federation.rounds"),
        ("data.laterals=perhaps", "data.laterals"),
        ("gmml.blocks=6", "gmml.blocks"),
        ("gmml.blocks=[a]", "gmml.blocks"),
        ("pretrain.lr=[1]", "pretrain.lr"),
    ],
)
def test_a_value_of_another_type_names_its_key(override: str, key: str) -> None:
    line = refused(override)
    assert override in line
    assert f"setting '{key}" in line


@pytest.mark.parametrize(
    "override",
    [
        *("run.seed=-1", f"run.seed={2**31}", "run.threads=0", "run.name='two words'", "run.name=../up"),
        *("encoder.img_size=60", "encoder.img_size=0", "gmml.align=7", "gmml.align=0", "gmml.max_block=0.1"),
        *(
            "gmml.max_block=1.5",
            "gmml.drop_budget=[0.5]",
            "gmml.drop_budget=[0.9,0.5]",
            "gmml.alien_budget=[0,1]",
        ),
        *(
            "gmml.kinds=[snow]",
            "gmml.kinds=[]",
            "gmml.blocks=[]",
            "pretrain.warmup=0.2",
            "pretrain.warmup=-0.1",
        ),
        *(
            "pretrain.lr=0",
            "pretrain.lr=.nan",
            "pretrain.batch_size=0",
            "pretrain.views=0",
            "pretrain.accumulate=0",
            "run.compile=perhaps",
            "pretrain.amp=fp8",
        ),
        *("pretrain.betas=[0.9]", "pretrain.objective=jigsaw", "data.test_share=1", "data.std=0"),
        *("federation.rounds=0", "federation.local_epochs=0", "federation.quorum=0", "federation.quorum=1.5"),
        *(
            "federation.retries=-1",
            "federation.deadline=0",
            "federation.uplink=fp8",
            "federation.downlink=int8",
        ),
        *("federation.server.name=adam", "federation.max_images=0", "federation.max_update_norm=0"),
        *("encoder.in_chans=3", "sim.alpha=0", "sim.phantoms=0", "probe.batch_size=0", "data.cache_size=-1"),
        *("gmml.head_layers=-2", "pretrain.betas=[0.5,2]", "pretrain.lr=.inf", "pretrain.clip=0"),
        *("federation.sites=[A,A]", "federation.max_images=100000000"),
        *("federation.sites=[a,'b c']", "privacy.min_cell=0", "sim.partition=fair"),
        *("augment.crop_scale=[0,1]", "augment.crop_scale=[0.5,1.5]", "augment.crop_ratio=[2,1]"),
    ],
)
def test_a_value_out_of_its_range_is_repeated_with_its_key(override: str) -> None:
    line, (key, value) = refused(override), override.split("=", 1)
    assert key in line
    digits = value.strip("[]'").split(",")[-1].strip("'")
    assert not digits or digits.lstrip(".").removesuffix(".0") in line


def test_nesterov_without_momentum_is_no_second_name_for_fedavg() -> None:
    assert "federation.server.momentum=0" in refused("federation.server.name=nesterov")


@pytest.mark.parametrize("override", ["pretrain.lr", "=3", " =3", ""])
def test_an_override_without_a_key_or_a_value_says_the_form(override: str) -> None:
    assert "key=value" in refused(override)


def test_an_override_that_is_no_yaml_is_one_line() -> None:
    assert "gmml.blocks=[1" in refused("gmml.blocks=[1")


@pytest.mark.parametrize("name", ["demoo", "configs/none.yaml", "/nowhere/mine.yaml"])
def test_a_recipe_that_is_not_there_names_those_that_are(name: str) -> None:
    line = refused(file=name)
    assert name in line
    assert "default, demo, segment, smoke, sscxr" in line


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "words", "a: [1", "\x00", "pretrain:\n\tlr: 1\n"])
def test_a_file_that_is_no_recipe_names_itself(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    if text == "":  # an empty recipe changes nothing
        assert configs.load(file) == configs.load()
        return
    assert str(file) in refused(file=file)


def test_a_recipe_with_an_unknown_key_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("pretrain:\n  lrr: 1\n")
    assert refused(file=file).startswith(
        f"{file}: unknown setting 'pretrain.lrr'; did you mean 'pretrain.lr'?"
    )


def test_a_section_that_is_a_value_names_the_override() -> None:
    assert refused("pretrain=3") == "override 'pretrain=3': 'pretrain' is a section of settings, not 3"


def test_a_key_that_resembles_none_is_not_guessed_at() -> None:
    assert refused("xyz=1").startswith("override 'xyz=1': unknown setting 'xyz'; docs/configuration.md")


def test_a_file_that_is_no_recipe_is_not_quoted(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("file,patient_id\na.png,Miller\nb.png,Smith\n")
    line = refused(file=file)
    assert line.startswith(f"{file}: expected sections")
    assert "Miller" not in line


# ---- names that settings choose from


def test_the_names_on_offer_are_those_that_exist() -> None:
    assert tuple(CODECS) == choices(FederationConfig, "uplink")
    assert set(choices(FederationConfig, "downlink")) < set(CODECS)
    for name in choices(configs.ServerOptimiserConfig, "name"):
        config = configs.load("smoke")
        config.federation.server.name = name
        server_optimiser(config)
    assert tuple(moments.AVERAGED) == choices(FederationConfig, "moments")
    for name in OBJECTIVES:
        build_objective(configs.load("smoke", [f"pretrain.objective={name}"]))


def choices(section: type[Any], name: str) -> tuple[str, ...]:
    """The names that a setting may have."""
    return next(item for item in dataclasses.fields(section) if item.name == name).metadata["choices"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_methods_section_has_the_settings_of_its_dataclass(name: str) -> None:
    config = configs.load("default", [f"pretrain.objective={name}"])
    settings = OBJECTIVES[name].settings(config)
    written = {item.name: item.type for item in dataclasses.fields(config.section(name))}
    assert written == dict(typing.get_type_hints(type(settings)).items())


# ---- text and back


@pytest.mark.parametrize("recipe", RECIPES)
def test_dumps_and_loads_round_trip(recipe: str) -> None:
    config = configs.load(recipe, ["federation.sites=[b,a]", "probe.cohorts={h: [x, y]}"])
    text = configs.dumps(config)
    assert configs.loads(text) == config
    assert configs.dumps(configs.loads(text)) == text


def test_what_loads_gives_is_the_caller_s_own() -> None:
    text = configs.dumps(configs.load("smoke"))
    configs.loads(text).gmml.blocks.append(9)
    assert configs.loads(text) == configs.load("smoke")


@pytest.mark.parametrize(
    "text", ["", "words", "[1, 2]", "a: [1", "pretrain: 3", "pretrain: {lrr: 1}", "pretrain: {lr: 1}", "\x00"]
)
def test_a_resolved_config_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        configs.loads(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("  ", []),
        ("pretrain.lr=1e-3 federation.rounds=20", ["pretrain.lr=1e-3", "federation.rounds=20"]),
        ("gmml.blocks='[1, 2]'", ["gmml.blocks=[1, 2]"]),
        ('run.name="a b"', ["run.name=a b"]),
    ],
)
def test_one_string_of_overrides_is_cut_as_a_shell_would(text: str, parts: list[str]) -> None:
    assert configs.split_overrides(text) == parts


def test_an_open_quote_is_one_line() -> None:
    with pytest.raises(ConfigError, match="quote each value") as error:
        configs.split_overrides("run.name='a")
    assert "\n" not in str(error.value)


# ---- the recipe's hash


CHANGES = {
    "data": "data.mean=0.4",
    "encoder": "encoder.drop_path=0.3",
    "augment": "augment.blur=0.3",
    "pretrain": "pretrain.lr=0.3",
    "gmml": "gmml.head_layers=2",
}


@pytest.mark.parametrize("override", [*CHANGES.values(), "run.threads=1", "run.compile=true"])
def test_the_hash_differs_with_the_recipe(override: str) -> None:
    assert smoke_hash(override) != smoke_hash()


def test_every_section_of_the_recipe_was_tried() -> None:
    assert set(CHANGES) == set(configs.load("smoke").recipe_sections)


@pytest.mark.parametrize("stage", ["classify", "segment"])
def test_each_stage_has_its_own_hash(stage: str) -> None:
    of_stage = smoke_hash(f"run.stage={stage}")
    assert of_stage != smoke_hash()
    assert of_stage == smoke_hash(f"run.stage={stage}", "pretrain.lr=0.3")
    assert of_stage != smoke_hash(f"run.stage={stage}", "finetune.lr=0.3")


@pytest.mark.parametrize(
    "override",
    [
        *(
            "federation.rounds=7",
            "federation.sites=[a]",
            "federation.server.lr=0.7",
            "federation.uplink=fp32",
        ),
        *("run.name=other", "run.seed=5", "run.device=cpu", "privacy.min_cell=3", "probe.neighbours=3"),
        "sim.alpha=2",
    ],
)
def test_the_hash_does_not_depend_on_the_federation(override: str) -> None:
    assert smoke_hash(override) == smoke_hash()


def test_the_hash_survives_the_wire() -> None:
    config = configs.load("demo")
    assert configs.recipe_hash(configs.loads(configs.dumps(config))) == configs.recipe_hash(config)
    assert len(configs.recipe_hash(config)) == 16


def test_a_run_of_before_a_method_was_there_is_read() -> None:
    stored = yaml.safe_load(configs.dumps(configs.load("smoke")))
    del stored["dino"]
    assert configs.loads(yaml.safe_dump(stored)).section("dino") == configs.load("default").section("dino")
    del stored["pretrain"]["lr"]
    with pytest.raises(ConfigError, match=r"pretrain\.lr"):
        configs.loads(yaml.safe_dump(stored))
