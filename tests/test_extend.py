"""docs/extend.md, as written: its method and its server rule in a copy of the tree, and a run with both."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from simulations import ROOT, SMALLEST, environment

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def edit(file: Path, *changes: tuple[str, str]) -> None:
    """Replace what stands in a file exactly once."""
    text = file.read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, f"{file.name}: {old!r}"
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")


def ended(tree: Path, command: list[str]) -> bytes:
    """The encoder that a run in the copy of the tree ends with."""
    found = subprocess.run(
        command,
        cwd=tree,
        env=environment() | {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": ""} | {"HOME": os.environ["HOME"]},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert found.returncode == 0, found.stderr
    return (tree / "out" / "encoder" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_method_and_a_server_rule_are_added_as_the_page_says(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for package in ("sscxr", "client", "server", "sim", "configs"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    method, rule = PYTHON
    (tree / "sscxr" / "objectives" / "denoise.py").write_text(method)
    with (tree / "configs" / "default.yaml").open("a") as handle:
        handle.write("\ndenoise:\n  noise: 0.5  # standard deviations\n")
    edit(
        tree / "sscxr" / "objectives" / "__init__.py",
        ("import GMML\n", "import GMML\nfrom sscxr.objectives.denoise import Denoise\n"),
        ('{"gmml": GMML', '{"denoise": Denoise, "gmml": GMML'),
    )
    edit(tree / "sscxr" / "config" / "schema.py", ('choice("fedavg"', 'choice("clipped", "fedavg"'))
    edit(
        tree / "server" / "optimisers.py",
        ("def server_optimiser(", rule[rule.index("class ") :] + "\n\ndef server_optimiser("),
        ("from sscxr.config import", "from sscxr.federation import codecs\nfrom sscxr.config import"),
        (
            '    if settings.name == "adamw":',
            '    if settings.name == "clipped": return Clipped(settings.lr)\n    if settings.name == "adamw":',
        ),
    )
    given = re.findall(r"python -m sim\.run .*", PAGE)
    assert len(given) == 2
    settings = [
        word for line in given for word in line.split() if word.startswith(("pretrain.", "federation."))
    ]
    out = tree / "out"
    command = [sys.executable, "-m", "sim.run", "--clients", "2", "--config", "smoke", "--out", str(out)]
    command += [*SMALLEST, "sim.phantoms=48", "pretrain.accumulate=2", "run.compile=true", *settings]
    whole = ended(tree, command)
    for folder in ("checkpoints/round-00002", "encoder"):  # as if it had been killed in its last round
        shutil.rmtree(out / folder)
    assert ended(tree, [*command, "--resume"]) == whole
    stored = (out / "config.yaml").read_text()
    assert "objective: denoise" in stored
    assert "name: clipped" in stored
    assert "pretrained without labels by denoising" in (out / "encoder" / "README.md").read_text()
    assert "as the encoder gets them" in (out / "report.html").read_text()
