"""What a hospital installs is enough for it: a site imports nothing of the extras."""

import subprocess
import sys

import pytest

EXTRAS = ("ray", "tensorboard", "torchxrayvision", "mlflow", "sqlalchemy", "onnx", "onnxruntime", "highdicom")


@pytest.mark.slow
def test_a_site_and_the_doctor_import_nothing_of_the_extras() -> None:
    code = f"""
import sys
for name in {EXTRAS}:
    sys.modules[name] = None  # importing it is an ImportError
import client.app, client.work, client.service, client.commands, client.doctor
import server.app, server.commands, sscxr.commands.cli
import sscxr.finetuning.finetuned, sscxr.predict.predict, sscxr.report, sscxr.finetuning.site_finetune
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
