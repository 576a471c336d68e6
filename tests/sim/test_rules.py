"""Every rule of a federation: the same bytes over Ray and after an interruption."""

from pathlib import Path

import pytest
from simulations import arguments, losses, run, small_cache, typed, weights

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
            "federation.uplink=int8",
        ),
        *("federation.server.name=fedadam", "federation.server.lr=0.003", "federation.server.momentum=0.9"),
    ],
}


@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path: Path, rule: str) -> None:
    cache, whole, stopped = small_cache(tmp_path), tmp_path / "whole", tmp_path / "stopped"
    assert typed(arguments(whole, *RULES[rule], data=cache)) == 0
    argv = arguments(stopped, *RULES[rule], data=cache)
    ended = run(
        [*argv, "--engine", "ray"], mark=str(tmp_path), interrupt_when=stopped / "checkpoints" / "round-00001"
    )
    assert ended.status == 130, ended.log
    assert typed([*argv, "--resume"]) == 0
    assert weights(stopped) == weights(whole)
    assert losses(stopped) == losses(whole)
