"""`deploy/flwr-clientapp`: a task begins with nothing that an earlier one left to be run or read as code.

The app here is a shell script, so that an account without a right to Python's folder can run it.
"""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy_files import DEPLOY

# What a hostile bundle does where it can: it edits the honest one, and every place that Python or Flower looks in.
EVIL = """
mkdir -p "$FLWR_HOME/apps/sscxr.sscxr.0.1.0.d8cc262a" "$TMPDIR/torchinductor"
mkdir -p "$HOME/.local/lib/python3.11/site-packages"
for place in "$FLWR_HOME/apps/sscxr.sscxr.0.1.0.d8cc262a/app.py" "$HOME/sitecustomize.py" "$HOME/.bashrc" \\
    "$HOME/.local/lib/python3.11/site-packages/usercustomize.py" "./sscxr.py" "$TMPDIR/torchinductor/kernel.so" \\
    "$SITE_PACKAGES/sitecustomize.py" "$SITE_PACKAGES/sscxr/__pycache__/x.pyc" "$TASK/flwr-clientapp" "$SECRET" \\
    "$RUNTIME_DIRECTORY/planted" "$STATE/a.safetensors"; do
    { echo planted > "$place"; } 2> /dev/null && echo "wrote $place"
done
chmod 000 "$HOME/.local"
cat "$SECRET" 2> /dev/null
( trap '' TERM HUP; while :; do
    for home in "$RUNTIME_DIRECTORY"/tasks/*; do echo planted > "$home/late" 2> /dev/null; done; sleep 0.05
done ) > /dev/null 2>&1 &
"""
HONEST = """
sleep 0.5
echo "home=$HOME flwr=$FLWR_HOME tmp=$TMPDIR here=$(pwd) user=$(id -u) groups=$(id -G)"
echo "words=$*"
echo "python=${PYTHONPATH-unset}"
find "$HOME" -mindepth 1
grep -h planted -r "$RUNTIME_DIRECTORY/tasks" || true
grep '^CapEff' /proc/self/status
"""


class Site:
    """A hospital's places, the app's account and the launcher's apart from each other."""

    def __init__(self, folder: Path, user: str) -> None:
        self.folder, self.user = folder, user
        for name in ("run", "state", "packages/sscxr/__pycache__", "task", "etc"):
            (folder / name).mkdir(parents=True)
        (folder / "run").chmod(0o711)
        (folder / "etc" / "secret").write_text("the secret\n")
        (folder / "etc" / "secret").chmod(0o600)
        shutil.copy(DEPLOY / "flwr-clientapp", folder / "task" / "flwr-clientapp")

    def task(self, script: str, *words: str) -> str:
        """What a task prints whose app is this script."""
        app = self.folder / "app.sh"
        app.write_text(f"#!/bin/sh\n{script}")
        app.chmod(0o755)
        env = {
            "PATH": "/usr/bin:/bin", "APP_USER": self.user, "CLIENTAPP": str(app), "PYTHONPATH": "/tmp",
            "RUNTIME_DIRECTORY": str(self.folder / "run"), "STATE": str(self.folder / "state"),
            "SITE_PACKAGES": str(self.folder / "packages"), "TASK": str(self.folder / "task"),
            "SECRET": str(self.folder / "etc" / "secret"),
        }  # fmt: skip
        command = [str(self.folder / "task" / "flwr-clientapp"), *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, umask=0o077)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that another account reaches, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="sscxr-task-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_task_begins_in_new_folders(folder: Path) -> None:
    site = Site(folder, "")
    # Of this account no process would be ended, and it may write to the program itself: what the units prevent.
    quiet = EVIL.partition("( trap")[0].replace('"$TASK/flwr-clientapp" ', "")
    assert f"wrote {folder}/run/tasks/" in site.task(quiet)
    printed = site.task(HONEST, "--token", "a b", "--parent-pid", str(os.getpid()))
    assert "planted" not in printed
    home = printed.split("home=")[1].split()[0]
    assert Path(home).parent == folder / "run" / "tasks"
    assert f"flwr={home}/flwr tmp={home} here={home} " in printed
    assert "words=--token a b --parent-pid" in printed
    assert "python=unset" in printed
    assert len(list((folder / "run" / "tasks").iterdir())) == 1, "what the earlier one had is deleted"


def _confined() -> bool:
    """Whether the test may change accounts, and signal all processes of one without meeting others'."""
    tried = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True)
    return os.geteuid() == 0 and tried.returncode == 0


IN_A_NAMESPACE = """
import sys; sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
from test_task import EVIL, HONEST, Site
site = Site(Path(sys.argv[2]), "nobody")
print("EVIL", site.task(EVIL))
print("HONEST", site.task(HONEST, "--token", "x", "--parent-pid", "1", "--insecure"))
"""


@pytest.mark.slow
@pytest.mark.skipif("not _confined()", reason="wants root and namespaces, for an account of the app's own")
def test_the_app_s_own_account_leaves_nothing_to_the_next_task(folder: Path) -> None:
    paths = f"{Path(__file__).parent}:{DEPLOY.parent / 'tests' / 'support'}:{DEPLOY.parent}"
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable]
    done = subprocess.run(
        [*command, "-c", IN_A_NAMESPACE, paths, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    evil, honest = done.stdout.split("HONEST")
    wrote = [line.split()[-1] for line in evil.splitlines() if "wrote" in line]
    assert any("apps/sscxr" in place for place in wrote), "it could edit its own copy"
    own = str(folder / "run" / "tasks")
    assert [place for place in wrote if not place.startswith(own) and not place.startswith("./")] == []
    assert "the secret" not in done.stdout
    assert "planted" not in honest, "nothing of it is there, and no process of it goes on"
    nobody = pwd.getpwnam("nobody")
    assert f"user={nobody.pw_uid} groups={nobody.pw_gid}" in honest
    assert "words=--token x --insecure" in honest, "Flower's watch over its parent wants a right it has not"
    assert "CapEff:\t0000000000000000" in honest


@pytest.mark.parametrize("user", ["root", "no-such-user"])
def test_an_account_that_is_not_the_app_s_own_is_refused(folder: Path, user: str) -> None:
    env = {
        "PATH": "/usr/bin:/bin",
        "APP_USER": user,
        "CLIENTAPP": "/bin/true",
        "RUNTIME_DIRECTORY": str(folder),
    }
    done = subprocess.run([DEPLOY / "flwr-clientapp"], env=env, capture_output=True, text=True, timeout=20)
    assert done.returncode != 0
    assert user in done.stderr
    assert not (folder / "tasks").exists()
