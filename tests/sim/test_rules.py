"""Every rule of a federation: the same bytes after an interruption, under Ray too."""

from pathlib import Path

import pytest
from simulations import losses, weights, whole_and_interrupted

pytestmark = pytest.mark.slow
RULES = {
    "gradients": [
        *("federation.sends=gradients", "federation.server.name=adamw", "federation.share_head=true"),
        "federation.uplink=int8",
    ],
    "all others": [
        *(
            "pretrain.optimiser=muon",
            "federation.moments=both",
            "federation.align=0.5",
            "federation.rule=trimmed",
            "federation.uplink=int8",
        ),
        *("federation.server.name=fedadam", "federation.server.lr=0.003", "federation.server.momentum=0.9"),
    ],
}


# Ray takes long to start; gradients have the shorter way from a site.
@pytest.mark.parametrize(("rule", "engine"), [("gradients", "inline"), ("all others", "ray")])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(
    tmp_path: Path, cache: Path, rule: str, engine: str
) -> None:
    whole, stopped = whole_and_interrupted(tmp_path, cache, engine, *RULES[rule])
    assert weights(stopped) == weights(whole)
    assert losses(stopped) == losses(whole)
