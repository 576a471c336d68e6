"""A federation on loopback, of the files in `deploy/` as they are: CA, SuperLink, nginx, SuperNodes, `flwr run`."""

import hashlib
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pandas as pd
from deploy_files import DEPLOY, nginx_conf, unit
from processes import DeploymentError, Part, Processes, answers, free_port, wait_until
from simulations import ROOT, environment
from wires import Wire

from client.policy import approve
from client.settings import init
from server.commands import describe
from sscxr.data.phantoms import phantom
from sscxr.data.prepare.prepare import prepare
from sscxr.runs import Status, read_status

BIN = Path(sys.executable).parent
REAL = ROOT.parent / "shared" / "data" / "cxr" / "nih_cxr14_1000" / "manifest.csv"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
SITES = ("hospital-a", "hospital-b", "hospital-c")
NAME = "lungs"
SETTINGS = (
    *("encoder.depth=1", "gmml.blocks=[1]", "run.threads=1", "run.device=cpu", "pretrain.batch_size=8"),
    *("federation.rounds=3", "federation.deadline=120", "federation.start_timeout=90"),
    "federation.evaluate_every=3",
)


def salt(site: str) -> bytes:
    """A hospital's salt, the same in every test run: with another draw, few patients may be left to train on."""
    return hashlib.sha256(f"{site} 3".encode()).digest()


@dataclass
class Deployment(Processes):
    """A federation in a folder.

    Its parts are superlink, nginx, and each site by its name. A part that was killed is started again by
    `start_superlink` or `start_node`, on the same database, under the same key.

    Attributes:
        sites: the hospitals' names.
        behind_nginx: SuperNodes connect through nginx; else to the SuperLink itself.
        record: a folder for what crosses between nginx and the SuperLink, TLS taken off; None: not recorded.
        images: of each hospital.
        app: the checkout whose apps `flwr run` sends.
        services: each site has its service, as by the units; else the app does its work.
        app_users: site -> the account, and its group, of the app there; none: this one.
        home: the coordinator's working directory and home.
    """

    sites: Sequence[str] = SITES
    behind_nginx: bool = True
    record: Path | None = None
    images: int = 40
    app: Path = ROOT
    services: bool = False
    app_users: dict[str, str] = field(default_factory=dict)
    wires: dict[str, Wire] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.etc, self.var = self.folder / "etc", self.folder / "var"
        self.home = self.folder / "coordinator"
        for folder in (self.etc, self.var, self.home / "flwr", self.folder / "nginx"):
            folder.mkdir(parents=True)
        self.superlink_port, self.outside = free_port(), free_port()
        self.ca = self.etc / "ca.crt"

    def close(self) -> None:
        super().close()
        for wire in self.wires.values():
            wire.close()
        self.wires.clear()

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
        own = self.folder / "nginx"
        (own / "bytes").write_bytes(os.urandom(2 << 20))
        (own / "nginx.conf").write_text(nginx_conf(own, self.etc, outside=self.outside, behind=self.behind))
        part = self.start("nginx", [NGINX, "-c", own / "nginx.conf", "-g", "daemon off;"], {}, own)
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

    def run(self, out: Path, *settings: str, approved: bool = True, **config: Any) -> str:
        """Start a run and leave it to itself: `SETTINGS`, these settings after them, these run-config keys."""
        overrides = [*SETTINGS, f"federation.sites=[{','.join(self.sites)}]", *settings]
        given = {"config": "smoke", "overrides": shlex.join(overrides), "out": str(out)} | config
        text = " ".join(f"{key}={json.dumps(value)}" for key, value in given.items())
        if approved:
            self.approve(given["config"], overrides)
        printed = self.flwr("run", self.app, NAME, "--run-config", text)
        if "Successfully started run" not in printed:
            raise DeploymentError(f"flwr run: {printed}\n{self.tail()}")
        return printed

    def approve(self, recipe: str, overrides: Sequence[str]) -> None:
        """Let each hospital approve the join file of such a run, as `sscxr site approve` does."""
        join = self.home / "asked.yaml"
        address = f"localhost:{self.superlink_port}"
        describe(recipe, list(overrides), name=NAME, superlink=address, ca=self.ca).write(join)
        for file in self.files():
            if file.exists():
                approve(file, join)

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
            prepare(
                [manifest], self.site(name) / "cache", size=80, workers=0, salt=salt(name), progress=False
            )
            self.name_socket(name, init(self.site(name), name=name, join=join))

    def name_socket(self, site: str, file: Path) -> None:
        """Name the service's socket in a `site.yaml`, if there are services."""
        if self.services:
            socket = f"{self._places(site, self.folder)['/run/sscxr-site']}/site.sock"
            file.write_text(file.read_text().replace('socket: ""', f"socket: {socket}"))
            file.chmod(0o600)

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
        (var / "credentials" / "superexec-secret").write_bytes(os.urandom(32))
        (var / "run").mkdir(exist_ok=True)
        port = self.outside if self.behind_nginx else self.superlink_port
        if wire:
            if site not in self.wires:
                self.wires[site] = Wire(port)
            port = self.wires[site].port
        places = {"/etc/sscxr-site/ca.crt": str(ca or folder / "ca.crt")} | self._places(site, var)
        if not self.services:
            there = f'service="{places["/run/sscxr-site"]}/site.sock"'
            places |= {there: f'site="{folder}/site.yaml"'}  # after the others, which it contains
        variables = {
            "SUPERLINK": f"localhost:{port}",
            "RUNTIME_PORT": str(free_port()),
            "CREDENTIALS_DIRECTORY": str(var / "credentials"),
        }
        apart = variables | {"APP_USER": self.app_users.get(site, ""), "RUNTIME_DIRECTORY": str(var / "run")}
        command, env = unit("app", places, apart)
        before = self.parts.get(f"{name}-app")
        if before and before.alive:  # of a SuperNode that ended
            before.process.kill()
            before.process.wait(10)
        self.start(f"{name}-app", command, env, var / "run", of=name)
        command, env = unit("supernode", places, variables)
        return self.start(name, command, env, var)

    def _places(self, site: str, var: Path) -> dict[str, str]:
        """The folders of a hospital's units, and those of a site here."""
        folder = self.site(site)
        return {
            "/opt/sscxr/venv/bin": str(BIN),
            "/opt/sscxr/task": str(DEPLOY),
            "/etc/sscxr-site": str(folder),
            "/var/lib/sscxr-node": str(var),
            "/var/lib/sscxr-site": str(folder),
            "/run/sscxr-site": str(self.folder / "serve" / site),
            "/run/sscxr-app": str(var / "run"),
        }

    def start_service(self, site: str) -> Part:
        """Start a site's service as its unit does, and wait until it is ready."""
        own = {" --group sscxr-app": f" --group {self.app_users[site]}" if site in self.app_users else ""}
        command, env = unit("site", self._places(site, self.folder / "nodes" / site) | own, {})
        part = self.start(f"{site}-service", command, env, self.site(site))
        wait_until(lambda: "ready at" in part.said() or not part.alive, 120, f"{site}'s service starts")
        if not part.alive:
            raise DeploymentError(f"the service of {site} ended:\n{part.said()}")
        return part

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
            if self.services:
                self.start_service(site)
            self.start_node(site, wire=site in wires)
        for site in self.sites:
            self.wait_for_node(site)
        return self
