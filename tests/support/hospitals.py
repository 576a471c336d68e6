"""Hospitals whose exports are full of canaries, a federation whose wire is recorded, a search of all it left."""

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from canaries import Canaries, Export, write_exports
from deployments import BIN, Deployment, salt
from leaks import Hit, Search, Watch
from pydicom import dcmread
from pydicom.dataset import FileDataset
from simulations import ROOT, environment
from wires import Wire

from client.settings import init
from sscxr.data.cache import store


class Hospitals(Deployment):
    """A federation whose hospitals' exports are full of canaries, and whose wire is recorded.

    Attributes:
        canaries, exports, printed: what is in the exports, the exports, what `sscxr prepare` said of each.
    """

    canaries: Canaries
    exports: dict[str, Export]
    printed: dict[str, str]

    def make_sites(self) -> None:
        """Write each hospital's export, prepare it as its engineer does, write its `site.yaml` and key."""
        join = self.invite()
        self.canaries, self.printed = Canaries(), {}
        self.exports = write_exports(self.folder, self.sites, self.canaries, images=self.images)
        for site, export in self.exports.items():
            store.create(self.site(site) / "cache", salt(site))
            out = ["--out", self.site(site) / "cache", "--size", "80", "--workers", "0"]
            self.printed[site] = self.sscxr("prepare", *export.arguments, *out)
            file = init(self.site(site), name=site, join=join)
            file.write_text(file.read_text().replace("min_mixed: 20", "min_mixed: 0"))  # the sites are small
            self.name_socket(site, file)
            self.canaries.cache(self.site(site) / "cache")

    def sscxr(self, *words: str | Path) -> str:
        """What an engineer's `sscxr` command says, whatever its exit status."""
        command = [str(BIN / "sscxr"), *map(str, words)]
        env = environment(COLUMNS="200")
        done = subprocess.run(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode in (0, 1, 2), done.stdout
        return done.stdout

    def start_node(self, site: str, **how: object) -> object:  # type: ignore[override]
        """Start a SuperNode; without nginx, its own wire records."""
        if not self.behind_nginx:
            assert self.record
            ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            ours.load_cert_chain(self.etc / "server.crt", self.etc / "server.key")
            theirs = ssl.create_default_context(cafile=str(self.ca))
            ends = {"server": ours, "client": theirs, "record": self.record / site}
            self.wires[site] = Wire(self.superlink_port, **ends)
            how["wire"] = True
        return super().start_node(site, **how)  # type: ignore[arg-type]

    def header(self, site: str) -> FileDataset:
        """The header that the apps below tell of."""
        return dcmread(min(self.exports[site].folder.glob("*/*/*/*/*.dcm")), stop_before_pixels=True)

    def app_with(self, name: str, client: str, fold: str = "") -> Path:
        """A checkout of the apps, with code added to `client/app.py` and `server/fold.py`."""
        folder = self.folder / "apps" / name
        for part in ("client", "server"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for module, code in (("client/app.py", client), ("server/fold.py", fold)):
            with (folder / module).open("a") as file:
                file.write(code)
        return folder


@dataclass
class Found:
    """What a search found, place by place, after a run.

    Attributes:
        out: the run's folder.
        server: of the coordinator's machine and the wire.
        sites: of each hospital's logs and folders.
    """

    out: Path
    server: dict[str, set[Hit]]
    sites: dict[str, set[Hit]]

    def tokens(self, place: str) -> set[str]:
        return {hit.token for hit in self.server[place]}


def look(hospitals: Hospitals, out: Path, watch: Watch) -> Found:
    """Search everything that a run left."""
    search, record = Search(hospitals.canaries), hospitals.record
    assert record is not None
    assert {"message_ins", "message_res", "objects"} <= {table for table, _ in watch.rows}
    rows: set[Hit] = set()
    for table, row in watch.rows:
        rows |= search.row(row, table)
    logs = [hospitals.folder / "logs" / f"{name}.log" for name in ("superlink", "nginx")]
    said = hospitals.flwr("log", str(hospitals.listed()[-1]["run-id"]), "lungs", "--show")
    server = {
        "wire": search.record(record),
        "rows": rows,
        "database": {
            hit for file in hospitals.var.glob("superlink.db*") for hit in search.file(file, file.name)
        },
        "logs": {hit for file in logs if file.exists() for hit in search.file(file, file.name)}
        | search.blob(said.encode(), "flwr log"),
        "report": search.file(out / "report.html", "report.html"),
        "release": search.folder(out / "encoder"),
        "run": search.folder(out),
        "disk": search.folder(hospitals.var, skip=("superlink.db", "superlink.db-wal", out.name))
        | search.folder(hospitals.home)
        | search.folder(hospitals.etc)
        | search.folder(hospitals.folder / "nginx", skip=("bytes",)),
    }
    sites = {}
    for site in hospitals.sites:
        logs = [hospitals.folder / "logs" / f"{part}.log" for part in (site, f"{site}-app")]
        found = [search.file(log, log.name) for log in logs]
        sites[site] = set().union(*found) | search.folder(hospitals.folder / "nodes" / site)
        sites[site] |= search.folder(hospitals.site(site), skip=("quarantine.csv",))
    tokens, hashes = len(hospitals.canaries), len(hospitals.canaries.hashes)
    print(
        f"{out.name}: {tokens} tokens and {hashes} hashes, {search.bytes_read / 1e6:.0f} MB, decoded ones too"
    )
    return Found(out, server, sites)
