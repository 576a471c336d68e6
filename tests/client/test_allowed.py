"""What the hospital's `site.yaml` does not allow is not done, and not told."""

import os
import subprocess
import sys
from pathlib import Path

import federation as fed
import pytest
from answers import failure, said, states
from marks import slow
from omegaconf import OmegaConf


def allow(site: Path, **values: object) -> None:
    settings = OmegaConf.merge(OmegaConf.load(site), values)
    site.write_text(OmegaConf.to_yaml(settings))


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"paused": True}, "paused"),
        slow({"stages": []}, "not allowed"),
        ({"threads": 1}, "not allowed"),
        slow({"min_images": 9}, "few images"),
        ({"min_cell": 9}, "few images"),
        ({"privacy": {"epsilon": 8}}, "settings"),
        slow({"device": "cuda:77"}, "request"),
    ],
)
def test_what_the_site_does_not_allow_is_refused_and_it_can_come_back(
    site: Path, values: dict[str, object], word: str
) -> None:
    asked = "run.threads=2" if "threads" in values else "run.threads=1"
    config, before = fed.settings(asked), site.read_text()
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


@pytest.mark.slow
def test_training_is_held_to_the_memory_that_the_site_allows(tmp_path: Path) -> None:
    """Where that is too little for the encoder, and less than the program has by then."""
    sites = fed.make_sites(tmp_path, ["anna", "bona"])
    for site, gigabytes in zip(sites, (1, 0.05), strict=True):
        allow(site, memory_gb=gigabytes)
    code = (
        "import federation as fed, sys; from pathlib import Path; from sscxr.federation.wire import RECORD\n"
        "large = fed.settings('encoder.depth=12', 'encoder.name=vit_base_patch16_224')\n"
        "for config, site in ((large, sys.argv[1]), (fed.settings(), sys.argv[2])):\n"
        "    print(dict(fed.ask(config, Path(site)).content.config_records[RECORD])['failure'])"
    )
    here = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, sites)],
        env={**os.environ, "PYTHONPATH": f"{here / 'support'}{os.pathsep}{here.parent}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.split() == ["memory"] * 2, run.stderr
