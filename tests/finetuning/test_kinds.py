"""The tasks' list: each has its modules, and a classifier does not wait for MONAI."""

import subprocess
import sys
from importlib import import_module

import pytest

from sscxr.config.schema import RECIPE_SECTIONS
from sscxr.finetuning import KINDS


def test_each_task_has_a_module_of_its_name_wherever_it_differs() -> None:
    assert [*KINDS] == [name for name in RECIPE_SECTIONS if name != "pretrain"]
    for name, kind in KINDS.items():
        assert import_module(f"sscxr.finetuning.{name}").KIND is kind
        assert import_module(f"sscxr.stages.{name}").STAGE.words.score == kind.score
        assert import_module(f"sscxr.predict.{name}").OPTIONS


@pytest.mark.slow
def test_a_classifier_does_not_wait_for_monai() -> None:
    uses = "import sscxr.finetuning.tune, sscxr.predict.predict, sscxr.predict.classify, sscxr.stages.segment, sys"
    subprocess.run([sys.executable, "-c", f"{uses}; assert 'monai' not in sys.modules"], check=True)
