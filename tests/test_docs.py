"""What the documentation tells a person to type: each command is run here, or listed with why it is not.

Commands are what README.md and docs/*.md have indented by four spaces, or fenced as `sh`; all else is fenced as
something else. Each is parsed: its options exist, its settings are known and in range. Those of the pages that are
not in `PARSED`, and not in `NOT_RUN`, are run, in this process, in a scratch folder a page, on phantoms, by a
recipe of seconds: `SUBSTITUTIONS` says what is put in the place of what.
"""

import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
import typer
from releases import served
from simulations import ROOT

from sim import run as sim_run
from sim.compare import __main__ as sim_compare
from sim.compare.file import read as read_comparison
from sscxr import config as configs
from sscxr.commands import cli

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages of which nothing is run here.
PARSED = {
    "compare.md": "hours; tests/sim/test_compare.py runs small ones",
    "corpora.md": "public corpora have to be downloaded first",
    "doctor.md": "synopses; tests/client/doctor runs them",
    "join-a-federation.md": "sets a machine up as root; tests/deployment does the same with the files of deploy/",
    "performance.md": "benchmarks, which take minutes and want a quiet machine; tests/bench runs them small",
    "posture.md": "minutes, and real X-rays that are not in the project",
    "results.md": "hours, and real X-rays that are not in the project",
    "scale.md": "benchmarks, as in performance.md",
}
ADDED = "wants what the page adds; tests/test_extend.py"
NOT_RUN = {
    r"^make (test|quick)$": "would run this test",
    r"^(export FLWR_\S+ FLWR_\S+|flwr run \. )": "tests/test_flwr_run.py and tests/deployment run it; parsed here",
    r"^flwr (supernode|log) ": "wants a SuperLink; tests/deployment",
    r"^(sudo|curl|tail -f|column) |^export PATH=": "a machine of its own, as root; tests/deployment",
    r"http\.server": "ends by Ctrl-C alone; a server of the tests takes its place",
    r"--install-completion": "changes the shell's start-up file",
    r"^tensorboard ": "a server that ends by Ctrl-C alone",
    r"^hf |hf://": "wants a hub and an account; tests/fetch/test_hub.py pulls from one on loopback",
    r"^sscxr compare ": "wants more labels than the images here have; tests/predict/test_probing.py compares",
    r"^pip install ": "installs packages; the tests' environment has them",
    r"objective=denoise|server\.name=clipped": ADDED,
}
# Put in the place of what stands in a command, before it is run; one after the other.
SIMULATED = (
    " --config smoke --clients 2 --rounds 1 run.threads=1 encoder.depth=4 gmml.blocks=[4] "
    "probe.min_cases=1000 sim.phantoms=72 finetune.batch_size=8"
)
SUBSTITUTIONS = {
    r"^(sscxr prepare (?!.*--public).*)$": r"\1 --public",  # of so few, another salt can set none aside
    r"^make demo$": f"python -m sim.run --out runs/demo{SIMULATED}",
    r"^(python -m sim\.run (?!--help).*)$": rf"\1{SIMULATED}",
    r"^(sscxr finetune .*)$": r"\1 finetune.epochs=1 finetune.min_steps=1 finetune.batch_size=8 run.threads=1 "
    "segment.feature_size=4 probe.resamples=20",
    r"\blabels\.csv": "EXPORT/labels.csv",
    r"\b(EXPORT(?! .*--labels)|A/manifest\.csv B/manifest\.csv)(?= )": "EXPORT/site-0/manifest.csv "
    "EXPORT/site-1/manifest.csv",
    r"\bOTHER_CACHE\b": "CACHE",
    r"\bENCODER\b": "runs/demo/encoder",
    r"\bFILES\.\.\.|\bFILE\b": "one.dcm",
    r"\[(--[a-z-]+)\]": r"\1",
    r"http://HOST:8000": "SERVED",
    r"--ca /etc/sscxr/ca\.crt": "",
    r"/var/lib/sscxr/runs/first": "runs/demo",
    r"^(python examples/few_labels\.py .*)$": r"\1 --steps 2",
    r"^python (examples/|docs/|bench/)": rf"python {ROOT}/\1",
}  # fmt: skip


def commands(page: Path) -> list[tuple[int, str]]:
    """Line numbers and commands of a page, continued lines joined, comments cut off."""
    found: list[tuple[int, str]] = []
    fence, parts, begun = "", "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        mark = re.fullmatch(r"```(\w*)", line)
        if mark:
            fence = "" if fence else mark[1] or "text"
        shell = fence in ("sh", "bash") if fence else line.startswith("    ")
        if mark or not shell or not line.strip():
            assert not parts, f"{page.name}:{number}: a command that goes on nowhere"
            continue
        begun = begun if parts else number
        parts += re.sub(r"(^|\s+)#( .*)?$", "", line.strip())
        if parts.endswith("\\"):
            parts = parts[:-1]
        elif parts:
            found.append((begun, re.sub(r" +", " ", parts)))
            parts = ""
    return found


ALL = [
    pytest.param(page.name, command, id=f"{page.name}:{number}")
    for page in PAGES
    for number, command in commands(page)
]


def why_not(page: str, command: str) -> str:
    """Why a command is not run; empty: it is."""
    reasons = (reason for pattern, reason in NOT_RUN.items() if re.search(pattern, command))
    return PARSED.get(page) or next(reasons, "")


# ---- parsed


@pytest.mark.parametrize(("page", "command"), ALL)
def test_options_and_settings_are_there(page: str, command: str) -> None:
    if why_not(page, command) == ADDED:
        return  # its settings are not there yet
    words = shlex.split(re.sub(r"\[(--[^]]*)\]", r"\1", command))  # [--json]: an option of a synopsis
    while words and (words[0] == "sudo" or re.fullmatch(r"[A-Z_]+=\S*", words[0])):
        words = words[1:]
    program = Path(words[0]).name if words else ""
    if program == "sscxr":
        parse(the_cli(), words[1:])
    elif words[:3] == ["python", "-m", "sim.run"]:
        parse(the_simulation(), words[3:])
    elif words[:3] == ["python", "-m", "sim.compare"]:
        parse(the_comparison(), words[3:])
        read_comparison(words[3], [word for word in words[4:] if re.match(r"[a-z_.]+=", word)])
    elif words[:2] == ["flwr", "run"] and "--run-config" in words:
        parse_run_config(words[words.index("--run-config") + 1])
    elif program == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "python" and words[1].endswith(".py"):
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in words[2:] if word.startswith("--"))
    for file in re.findall(r"(?<![\w/.])(?:deploy|configs|bench|examples)/[\w.-]+", command):
        assert (ROOT / file).exists(), f"{file} is not there"


@cache
def the_cli() -> click.Command:
    for entry in entry_points(group="sscxr.commands"):
        entry.load()(cli.app)
    return typer.main.get_command(cli.app)


@cache
def the_simulation() -> click.Command:
    app = typer.Typer(add_completion=False)
    app.command()(sim_run.run)
    return typer.main.get_command(app)


@cache
def the_comparison() -> click.Command:
    return typer.main.get_command(sim_compare.app)


def parse(command: click.Command, words: list[str]) -> None:
    """Parse without running; settings among the words are read too."""
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    if {"--help", "--version", "--show-completion", "--install-completion"} & set(words):
        return
    with command.make_context("command", list(words)):
        pass
    configs.load("default", [word for word in words if re.match(r"[a-z]+\.[a-z_.]+=", word)])


def parse_run_config(text: str) -> None:
    settings = tomllib.loads("\n".join(re.findall(r'\w+="[^"]*"', text)))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert settings
    assert settings.keys() <= known.keys()
    recipe = settings.get("config", "default")
    configs.load(
        "default" if "/" in recipe else recipe, configs.split_overrides(settings.get("overrides", ""))
    )


# ---- run


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small run, its phantoms as an export, a cache of them, and one file."""
    folder = tmp_path_factory.mktemp("docs")
    shell(f"python -m sim.run --out runs/demo{SIMULATED}", folder)
    shutil.copytree(folder / "runs" / "demo" / "phantoms", folder / "EXPORT")
    tables = [pd.read_csv(file, dtype=str) for file in sorted((folder / "EXPORT").glob("*/manifest.csv"))]
    for number, table in enumerate(tables):
        table["file"], table["mask"] = (f"site-{number}/" + table[name] for name in ("file", "mask"))
    pd.concat(tables).to_csv(folder / "EXPORT" / "labels.csv", index=False)
    shutil.copyfile(next((folder / "EXPORT").rglob("*.dcm")), folder / "one.dcm")
    shell(
        "sscxr prepare EXPORT/site-0/manifest.csv EXPORT/site-1/manifest.csv --out CACHE --workers 0", folder
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page.name for page in PAGES if page.name not in PARSED])
def test_the_commands_of_a_page_run_as_they_stand(
    page: str, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = next(path for path in PAGES if path.name == page)
    for name in ("EXPORT", "one.dcm", "CACHE"):
        (tmp_path / name).symlink_to(demo / name)
    text = file.read_text(encoding="utf-8")
    if "make demo" not in [command for _, command in commands(file)]:
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "demo").symlink_to(demo / "runs" / "demo")
    if re.search(r"prepare EXPORT --out CACHE", text):
        (tmp_path / "CACHE").unlink()
    monkeypatch.setenv("SSCXR_CACHE", str(tmp_path / "fetched"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    with served(tmp_path / "releases" / "demo-1.0") as site:
        for number, command in commands(file):
            if not why_not(page, command):
                code = shell(substituted(command).replace("SERVED", site.url), tmp_path)
                assert code == 0, f"{page}:{number}: exit code {code}: {command}"
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            code = block.replace("http://HOST:8000", site.url).replace('"FOLDER"', '"releases/demo-1.0"')
            with inside(tmp_path):
                exec(compile(code, page, "exec"), {})


def substituted(command: str) -> str:
    for pattern, replacement in SUBSTITUTIONS.items():
        command = re.sub(pattern, replacement, command)
    return command


def shell(command: str, folder: Path) -> int:
    """Run a command; ours in this process, since importing torch anew for each would take minutes."""
    words = shlex.split(command)
    if words[0] == "sscxr":
        return call(cli.main, ["sscxr", *words[1:]], folder)
    if words[:3] == ["python", "-m", "sim.run"]:
        return call(sim_run.main, words[2:], folder)
    if words[0] == "python" and "/examples/" in words[1]:
        return call(lambda: runpy.run_path(words[1], run_name="__main__"), words[1:], folder)
    here = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-ec", command], cwd=folder, env=here, timeout=300).returncode


def call(main: Any, argv: list[str], folder: Path) -> int:
    """Run a program's `main` as its command line would; its exit code."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with inside(folder), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", argv)
            main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# ---- what else has to stay true


def test_no_reason_is_left_over() -> None:
    told = [command for page in PAGES for _, command in commands(page)]
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, one) for one in told)] == []


def test_links_lead_to_files() -> None:
    for page in PAGES:
        text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_page_of_settings_is_the_schema_s(monkeypatch: pytest.MonkeyPatch) -> None:
    script = str(ROOT / "docs" / "make_configuration.py")
    monkeypatch.setattr(sys, "argv", [script, "--check"])
    runpy.run_path(script, run_name="__main__")  # exits with a line where the page is stale
