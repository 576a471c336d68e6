"""A federation on loopback, of the files in `deploy/` as they are: CA, SuperLink, nginx, SuperNodes, `flwr run`.

Whatever it starts carries a mark in its environment, Flower's detached processes too, and ends by its pid.
"""

import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from time import monotonic, sleep
from typing import Any

import pandas as pd
from simulations import ROOT, environment
from wires import Wire

from client.settings import init
from server.commands import describe
from sscxr.data import phantom
from sscxr.data.prepare import prepare
from sscxr.runs import Status, read_status

BIN = Path(sys.executable).parent
DEPLOY = ROOT / "deploy"
REAL = ROOT.parent / "shared" / "data" / "cxr" / "nih_cxr14_1000" / "manifest.csv"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
SITES = ("hospital-a", "hospital-b", "hospital-c")
NAME = "lungs"
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
SETTINGS = (
    *("encoder.depth=1", "gmml.blocks=[1]", "run.threads=1", "run.device=cpu", "pretrain.batch_size=8"),
    *("federation.rounds=3", "federation.deadline=120", "federation.start_timeout=90"),
    "federation.evaluate_every=3",
)


def _end_with_us() -> None:
    """Let this process be ended with the tests' own, where those are killed; Flower's children follow theirs."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class DeploymentError(AssertionError):
    """Something of the federation did not come up or did not end; the text says what it logged."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(there: Callable[[], Any], limit: float, what: str, every: float = 0.2) -> Any:
    """What `there` returns, once it is something.

    Raises:
        DeploymentError: nothing within `limit` seconds.
    """
    until = monotonic() + limit
    while not (found := there()):
        if monotonic() > until:
            raise DeploymentError(f"{what}: not within {limit:g} s")
        sleep(every)
    return found


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def unit(
    name: str, places: Mapping[str, str], variables: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of `deploy/NAME.service` and its environment file.

    Args:
        places: folder of the unit -> folder here.
        variables: of the environment, in place of the file's.
    """

    def here(text: str) -> str:
        for folder, place in places.items():
            text = text.replace(folder, place)
        return text

    text = (DEPLOY / f"{name}.service").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    lines = (DEPLOY / f"{name}.env").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    env = {key: here(value) for key, value in given.items()} | dict(variables)
    return shlex.split(Template(here(command)).substitute(env)), env


@dataclass
class Part:
    """One of the federation's processes, and whatever it starts in turn.

    Attributes:
        name: superlink, nginx, a site's name, or the name of a test's own.
        log: what it prints, after what an earlier one of that name did.
        start: bytes of the log that were there before.
    """

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path
    start: int

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        """What this one printed so far."""
        return self.log.read_bytes()[self.start :].decode(errors="replace")


@dataclass
class Deployment:
    """A federation in a folder.

    Its parts are superlink, nginx, and each site by its name; `pids` and `kill` find by the command line what a
    part started in turn: `kill("superlink", "flwr-serverapp")`, `kill("hospital-a", "flwr-clientapp")`. A part that
    was killed is started again by `start_superlink` or `start_node`, on the same database, under the same key.

    Attributes:
        folder: everything of it.
        sites: the hospitals' names.
        behind_nginx: SuperNodes connect through nginx; else to the SuperLink itself.
        record: a folder for what crosses between nginx and the SuperLink, TLS taken off; None: not recorded.
        images: of each hospital.
        app: the checkout whose apps `flwr run` sends.
        home: the coordinator's working directory and home.
    """

    folder: Path
    sites: Sequence[str] = SITES
    behind_nginx: bool = True
    record: Path | None = None
    images: int = 40
    app: Path = ROOT
    wires: dict[str, Wire] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mark = str(self.folder)
        self.etc, self.var = self.folder / "etc", self.folder / "var"
        self.home = self.folder / "coordinator"
        for folder in (self.etc, self.var, self.home / "flwr", self.folder / "logs", self.folder / "nginx"):
            folder.mkdir(parents=True)
        self.superlink_port, self.outside = free_port(), free_port()
        self.ca = self.etc / "ca.crt"

    # ---- processes

    def start(self, name: str, command: Sequence[str | Path], env: Mapping[str, str], cwd: Path) -> Part:
        """Start a process; its log goes on where an earlier one's of that name ended."""
        log = self.folder / "logs" / f"{name}.log"
        whole = environment(**env, SSCXR_MARK=self.mark, SSCXR_PART=name)
        del whole["PYTHONPATH"]  # a hospital has none
        start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            process = subprocess.Popen(
                [str(word) for word in command], cwd=cwd, env=whole, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, preexec_fn=_end_with_us,
            )  # fmt: skip
        self.parts[name] = Part(name, process, log, start)
        return self.parts[name]

    def pids(self, part: str = "", command: str = "") -> list[int]:
        """Living processes of a part (all parts), whose command line has this text."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # gone, or another user's
                continue
            ours = f"SSCXR_MARK={self.mark}".encode() in variables
            if (
                ours
                and (not part or f"SSCXR_PART={part}".encode() in variables)
                and words
                and command in words
            ):
                found.append(int(folder.name))
        return sorted(found)

    def kill(self, part: str = "", command: str = "", number: int = signal.SIGKILL) -> list[int]:
        """Send a signal to the processes of a part that match, all of them by default; the pids."""
        pids = self.pids(part, command)
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if not command and part in self.parts and number == signal.SIGKILL:
            self.parts[part].process.wait(10)
        return pids

    def stop(self, part: str, limit: float = 20) -> None:
        """End a part as systemd does: SIGTERM to it and to what it started, SIGKILL to what is left."""
        self.kill(part, number=signal.SIGTERM)
        until = monotonic() + limit
        while self.pids(part) and monotonic() < until:
            self._reap()
            sleep(0.1)
        self.kill(part)

    def _reap(self) -> None:
        for part in self.parts.values():
            part.process.poll()

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for name in reversed(self.parts):
            self.kill(name, number=signal.SIGTERM)
        until = monotonic() + 5
        while self.pids() and monotonic() < until:
            self._reap()
            sleep(0.1)
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self._reap()
            sleep(0.1)
        for wire in self.wires.values():
            wire.close()
        self.wires.clear()

    def __enter__(self) -> "Deployment":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def logs(self) -> dict[str, str]:
        """What each part printed, its SuperExec and apps included."""
        files = sorted((self.folder / "logs").glob("*.log"))
        return {file.stem: file.read_text(errors="replace") for file in files}

    def tail(self, characters: int = 2500) -> str:
        """The logs' ends, for a failure's text."""
        return "\n".join(f"--- {name}\n{text[-characters:]}" for name, text in self.logs().items())

    # ---- the coordinator

    def make_ca(self) -> None:
        subprocess.run(
            [DEPLOY / "make-ca.sh", self.etc, "localhost"], check=True, capture_output=True, text=True
        )

    def start_superlink(self) -> Part:
        """Start the SuperLink as its unit does, on the database that may be there."""
        places = {
            "/opt/sscxr/venv/bin": str(BIN), "/etc/sscxr": str(self.etc), "/var/lib/sscxr": str(self.var),
        }  # fmt: skip
        variables = {"SUPERLINK_PORT": str(self.superlink_port), "CREDENTIALS_DIRECTORY": str(self.etc)}
        command, env = unit("superlink", places, variables)
        part = self.start("superlink", command, env, self.var)
        wait_until(lambda: answers(self.superlink_port) or not part.alive, 60, "the SuperLink listens")
        if not part.alive:
            raise DeploymentError(f"the SuperLink ended:\n{part.said()}")
        return part

    def start_nginx(self) -> Part:
        """Start nginx with `deploy/nginx.conf`, its ports and paths replaced."""
        assert NGINX, "no nginx here"
        inner = free_port()
        text = (DEPLOY / "nginx.conf").read_text()
        own = str(self.folder / "nginx")
        temporary = "".join(
            f"    {kind}_temp_path {own}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        for was, now in {
            "user www-data;": "user root;" if os.getuid() == 0 else "",
            "worker_processes auto": "worker_processes 1",
            "/run/nginx.pid": f"{own}/pid",
            "/var/log/nginx": own,
            "/etc/sscxr": str(self.etc),
            "/var/lib/sscxr-probe": own,
            "127.0.0.1:8000": f"127.0.0.1:{self.behind}",
            "listen 8443 ssl": f"listen 127.0.0.1:{self.outside} ssl",
            "127.0.0.1:8445": f"127.0.0.1:{inner}",
            "http {\n": f"http {{\n{temporary}",
        }.items():
            assert was in text, f"deploy/nginx.conf has no {was!r} any more"
            text = text.replace(was, now)
        (self.folder / "nginx" / "bytes").write_bytes(os.urandom(2 << 20))
        conf = self.folder / "nginx" / "nginx.conf"
        conf.write_text(text)
        part = self.start("nginx", [NGINX, "-c", conf, "-g", "daemon off;"], {}, self.folder / "nginx")
        wait_until(lambda: answers(self.outside) or not part.alive, 20, "nginx listens")
        if not part.alive:
            raise DeploymentError(f"nginx ended:\n{part.said()}")
        return part

    @property
    def behind(self) -> int:
        """The port that nginx passes on to: the SuperLink's, or of the wire that records."""
        if not self.record:
            return self.superlink_port
        if "behind" not in self.wires:
            ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            ours.load_cert_chain(self.etc / "server.crt", self.etc / "server.key")
            theirs = ssl.create_default_context(cafile=str(self.ca))
            self.wires["behind"] = Wire(self.superlink_port, server=ours, client=theirs, record=self.record)
        return self.wires["behind"].port

    def flwr(self, *words: str | Path, limit: float = 120) -> str:
        """What a `flwr` command of the coordinator's prints."""
        settings = f'[superlink.{NAME}]\naddress = "127.0.0.1:{self.superlink_port}"\n'
        settings += f'root-certificates = "{self.ca}"\n'
        (self.home / "flwr" / "config.toml").write_text(settings)
        env = environment(
            HOME=str(self.home),
            FLWR_HOME=str(self.home / "flwr"),
            PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}",
            SSCXR_MARK=self.mark,
            SSCXR_PART="flwr",
        )
        del env["PYTHONPATH"]
        done = subprocess.run(
            [str(BIN / "flwr"), *(str(word) for word in words)], cwd=self.home, env=env, text=True,
            timeout=limit, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.stdout

    def register(self, site: str, key: Path | None = None) -> str:
        """Register a site's key, as the coordinator does who was sent it; the node's id."""
        public = key or self.site(site) / "node-key.pub"
        printed = self.flwr("supernode", "register", public, NAME, "--name", site)
        told = re.search(r"SuperNode (\d+) registered successfully", printed)
        if not told:
            raise DeploymentError(f"registering {site}: {printed}")
        return told[1]

    def run(self, out: Path, *settings: str, **config: Any) -> str:
        """Start a run and leave it to itself: `SETTINGS`, these settings after them, these run-config keys."""
        overrides = [*SETTINGS, f"federation.sites=[{','.join(self.sites)}]", *settings]
        given = {"config": "smoke", "overrides": shlex.join(overrides), "out": str(out)} | config
        text = " ".join(f"{key}={json.dumps(value)}" for key, value in given.items())
        printed = self.flwr("run", self.app, NAME, "--run-config", text)
        if "Successfully started run" not in printed:
            raise DeploymentError(f"flwr run: {printed}\n{self.tail()}")
        return printed

    def wait(self, out: Path, limit: float = 300) -> Status:
        """How the newest run, which is in `out`, ended.

        Raises:
            DeploymentError: it has not ended in time, or ended without a word.
        """

        def ended() -> Status | None:
            if (out / "status.json").exists() and read_status(out).state == "running":
                return None  # a look at the folder is cheap; asking Flower takes seconds of a core
            # Flower before the folder: it may still say "running" when that does not, never the other way round.
            entry = self.listed()[-1]
            if not str(entry["status"]).startswith("finished"):
                return None
            if not (out / "status.json").exists():
                raise DeploymentError(
                    f"{entry['status']}:\n{self.flwr('log', str(entry['run-id']), NAME, '--show')}"
                )
            return read_status(out)

        try:
            found: Status = wait_until(ended, limit, f"the run in {out} ends", every=2)
        except DeploymentError as error:
            raise DeploymentError(f"{error}\n{self.tail()}") from None
        return found

    def listed(self) -> list[dict[str, Any]]:
        """The runs that the SuperLink knows, the newest last."""
        printed = self.flwr("list", NAME, "--format", "json")
        runs: list[dict[str, Any]] = json.loads(printed[printed.index("{") :])["runs"]
        return sorted(runs, key=lambda run: str(run["pending-at"]))

    # ---- hospitals

    def site(self, name: str) -> Path:
        """A hospital's folder: `site.yaml`, its keys, its cache, its state."""
        return self.folder / "sites" / name

    def files(self) -> list[Path]:
        """Each hospital's `site.yaml`, in the order of their names."""
        return [self.site(name) / "site.yaml" for name in sorted(self.sites)]

    def invite(self) -> Path:
        """Write the join file that every hospital is sent."""
        file = self.home / "join.yaml"
        address = f"localhost:{self.outside if self.behind_nginx else self.superlink_port}"
        describe("smoke", list(SETTINGS), name=NAME, superlink=address, ca=self.ca).write(file)
        return file

    def make_sites(self) -> None:
        """Draw each hospital's phantoms as DICOM, prepare them, write its `site.yaml` and key.

        The last hospital has real chest X-rays where there are some beside the project.
        """
        join = self.invite()
        count = len(self.sites)
        manifests = phantom.write(
            self.folder / "phantoms", images=self.images * count, sites=count, seed=0, size=96
        )
        if REAL.is_file():
            manifests[-1] = self._some_real()
        for name, manifest in zip(self.sites, manifests, strict=True):
            prepare([manifest], self.site(name) / "cache", size=80, workers=0, progress=False)
            init(self.site(name), name=name, join=join)

    def _some_real(self) -> Path:
        """A manifest of as many real images, NIH ChestX-ray14's first."""
        table = pd.read_csv(REAL, dtype=str, keep_default_na=False)[: self.images]
        for file in table["file"]:
            copy = self.folder / "real" / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REAL.parent / file, copy)
        manifest = self.folder / "real" / "manifest.csv"
        table.assign(mask="").to_csv(manifest, index=False)
        return manifest

    def start_node(
        self,
        site: str,
        *,
        key: Path | None = None,
        ca: Path | None = None,
        wire: bool = False,
        name: str = "",
    ) -> Part:
        """Start a site's SuperNode as its unit does.

        Args:
            key, ca: in place of its own.
            wire: let its traffic pass through `wires[site]`, which is made where it is not there.
            name: of the part, where it is not the site's.
        """
        folder, name = self.site(site), name or site
        var = self.folder / "nodes" / name
        (var / "credentials").mkdir(parents=True, exist_ok=True)
        shutil.copy(key or folder / "node-key", var / "credentials" / "node-key")
        port = self.outside if self.behind_nginx else self.superlink_port
        if wire:
            if site not in self.wires:
                self.wires[site] = Wire(port)
            port = self.wires[site].port
        places = {
            "/opt/sscxr/venv/bin": str(BIN),
            "/etc/sscxr-site/ca.crt": str(ca or folder / "ca.crt"),
            "/etc/sscxr-site": str(folder),
            "/var/lib/sscxr-site": str(var),
        }
        variables = {
            "SUPERLINK": f"localhost:{port}",
            "RUNTIME_PORT": str(free_port()),
            "CREDENTIALS_DIRECTORY": str(var / "credentials"),
        }
        command, env = unit("supernode", places, variables)
        return self.start(name, command, env, var)

    def wait_for_node(self, name: str, limit: float = 60) -> None:
        """Wait until a SuperNode has been let in, after its last start."""
        part = self.parts[name]
        wait_until(lambda: "SuperNode ID" in part.said() or not part.alive, limit, f"{name} connects")
        if not part.alive:
            raise DeploymentError(f"{name} ended:\n{part.said()[-3000:]}")

    def come_back(self, site: str, limit: float = 150, **given: Any) -> float:
        """Start a site's SuperNode until it is let in, as systemd would; the seconds it took.

        A SuperLink that was not told of its end takes the one before for alive, for a minute, and refuses this one.
        """
        began = monotonic()
        while True:
            part = self.start_node(site, **given)
            wait_until(
                lambda part=part: "SuperNode ID" in part.said() or not part.alive, limit, f"{site} connects"
            )
            if part.alive:
                return monotonic() - began
            if monotonic() - began > limit:
                raise DeploymentError(f"{site} is not let in:\n{part.said()[-3000:]}")
            sleep(5)

    # ---- all of it

    def start_all(self, *, wires: Sequence[str] = ()) -> "Deployment":
        """Everything up to registered and connected SuperNodes; `wires`: sites whose traffic passes through one."""
        self.make_ca()
        self.make_sites()
        self.start_superlink()
        if self.behind_nginx:
            self.start_nginx()
        for site in self.sites:
            self.register(site)
        for site in self.sites:
            self.start_node(site, wire=site in wires)
        for site in self.sites:
            self.wait_for_node(site)
        return self
