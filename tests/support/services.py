"""A site service for a test: in a thread of this process, or as `sscxr site serve` in one of its own."""

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import wait_until
from simulations import environment

from client.service import Service, listening
from sim.engine import InlineGrid

BIN = Path(sys.executable).parent


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's, open to other accounts."""
    folder = Path(tempfile.mkdtemp(prefix="sscxr-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def in_a_thread(site: Path, socket: Path) -> Iterator[Service]:
    """A service of a `site.yaml` in this process."""
    service = Service(site)
    with listening(service, socket):
        thread = threading.Thread(target=service.run)
        thread.start()
        try:
            yield service
        finally:
            service.stop()
            thread.join(60)
    assert not thread.is_alive()


class Serving:
    """`sscxr site serve`, which can be killed and started again."""

    def __init__(self, site: Path, socket: Path, *words: str, **variables: str) -> None:
        self.log, self.socket = socket.parent.with_name(f"{socket.parent.name}.log"), socket
        command = [str(BIN / "sscxr"), "site", "serve", str(site), "--socket", str(socket), *words]
        with self.log.open("ab") as log:
            self.start = log.tell()
            env = environment(**variables)
            self.process = subprocess.Popen(command, env=env, cwd="/", stdout=log, stderr=subprocess.STDOUT)

    def said(self) -> str:
        """What it logged since it was started."""
        return self.log.read_bytes()[self.start :].decode()

    def wait(self) -> "Serving":
        """Return when it is ready."""
        wait_until(lambda: "ready at" in self.said() or self.process.poll() is not None, 120, "it is ready")
        assert self.process.poll() is None, self.said()
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def __enter__(self) -> "Serving":
        return self.wait()

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        assert self.process.wait(60) in (0, -9), self.said()


class Grid(InlineGrid):
    """A Grid whose nodes have a site service, whose socket stands in their node config."""

    def __init__(self, app: Any, sites: list[Path], sockets: list[Path]) -> None:
        super().__init__(app, sites)
        for context, socket in zip(self._contexts.values(), sockets, strict=True):
            context.node_config["service"] = str(socket)
