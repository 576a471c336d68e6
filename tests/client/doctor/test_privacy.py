"""The doctor's lines on differential privacy."""

from pathlib import Path

import federation as fed
from omegaconf import OmegaConf

from client.doctor.privacy import privacy
from client.settings import read_settings
from sscxr.federation.accounting import Charge, epsilon

PRIVATE = ("privacy.noise=4", "gmml.kinds=[noise]", "pretrain.batch_size=8", "federation.rounds=3")


def found(site: Path, *recipe: str, **settings: object) -> list[tuple[str, str]]:
    merged = OmegaConf.merge(OmegaConf.load(site), {"privacy": {"delta": 1e-3, **settings}})
    site.write_text(OmegaConf.to_yaml(merged))
    return [(one.state, one.value) for one in privacy(read_settings(site), fed.settings(*recipe))]


def test_what_is_left_and_what_the_recipe_takes(site: Path) -> None:
    assert found(site) == [], "nobody asks for it"
    ((state, value),) = found(site, *PRIVATE)
    assert (state, "set privacy.patients" in value) == ("failed", True)
    cost = epsilon([Charge(4.0, 1.0, 3)], 1e-3)
    assert found(site, *PRIVATE, patients=8) == [
        ("ok", f"epsilon 0 spent at delta 0.001; {cost:.3g} after a run of this recipe")
    ]
    ((state, value),) = found(site, *PRIVATE, epsilon=cost * 0.99)
    assert state == "warning"
    ((state, value),) = found(site)
    assert (state, "trains without noise" in value) == ("failed", True)
    *_, (state, value) = found(site, *PRIVATE, patients=20)
    assert (state, "far from" in value, "8" in value) == ("warning", True, False)
