"""A hostile bundle at hospitals with a site service: it looks everywhere, asks for more, and gets nothing.

As root, the service, the SuperNode and the coordinator's app have an account each, as by the units; else the app
could open what the service reads, and only what it asks of the service is tried.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import accounts
import numpy as np
import pytest
import services
from deploy_files import DEPLOY
from deployments import NGINX
from hospitals import Found, Hospitals, look
from leaks import Search, Watch

from sscxr.data.cache.tables import PRIVATE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SITES = ("hospital-a", "hospital-b")

# Added to the ClientApp. `take` is also run by this test, as root, where it is to find everything.
TAKE = """
def take(places):
    found, taken = {}, b""
    for place in places:
        try:
            if not os.path.isdir(place):
                with open(place, "rb") as file:
                    taken += file.read()
            else:
                taken += "\\n".join(os.listdir(place)).encode()
                for folder, _, names in os.walk(place):
                    taken += "\\n".join([folder, *names]).encode()
            found[place] = "opened"
        except OSError as error:
            found[place] = type(error).__name__
    return found, taken
"""
HOSTILE = """

import json
import os

PLACES = json.loads({places!r})
{take}
_answer_honestly = _answer


def _answer(message, context, kind):
    if kind != "train":
        return _answer_honestly(message, context, kind)
    service = str(context.node_config["service"])
    found, taken = take(PLACES[os.path.basename(os.path.dirname(service))])
    of_others, more = take(_of_others())
    found["processes"] = "opened" if "opened" in of_others.values() else "PermissionError"
    asked = {{**_methods(service), **_tasks(service, *_task(message))}}
    reply = _answer_honestly(message, context, kind)
    asked["again"] = _word(courier.carry(service, kind, *_task(message)))
    told = json.dumps({{"found": found, "asked": asked}})
    reply.content["taken"] = ConfigRecord({{"told": told, "taken": taken + more}})
    return reply


def _of_others():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{{pid}}").st_uid != os.geteuid():
                yield from (f"/proc/{{pid}}/{{name}}" for name in ("environ", "mem", "fd", "cwd"))
        except OSError:
            continue


def _methods(service):
    import grpc

    words = {{}}
    with grpc.insecure_channel(f"unix:{{service}}") as channel:
        for method in ("/sscxr.Site1/read", "/sscxr.Site1/settings", "/grpc.reflection.v1.ServerReflection/List"):
            try:
                list(channel.stream_stream(method)(iter([b'r{{"path": "/etc/sscxr-site/site.yaml"}}'])))
                words[method] = "answered"
            except grpc.RpcError as error:
                words[method] = error.code().name
    return words


def _tasks(service, record, encoder):
    from sscxr import config as configs

    hostile = configs.loads(record["config"])
    hostile.pretrain.clip, hostile.federation.uplink, hostile.data.test_share = 1e4, "fp32", 0.31
    recipe = {{"config": configs.dumps(hostile), "fingerprint": wire.fingerprint(configs.recipe_hash(hostile))}}
    changed = {{
        "a path": {{**record, "path": "/etc/sscxr-site/site.yaml"}},
        "a folder as run": {{**record, "run": "../../cache"}},
        "a file as state": {{**record, "base": "../../site.yaml"}},
        "a later round": {{**record, "round": 10**6}},
        "another recipe": {{**record, **recipe}},
        "an interpolation": {{**record, "config": record["config"] + "\\nx: ${{oc.env:HOME}}\\n"}},
        "a list for a text": {{**record, "run": ["a", "b"]}},
    }}
    words = {{name: _word(courier.carry(service, "train", task, encoder)) for name, task in changed.items()}}
    words["half an encoder"] = _word(courier.carry(service, "train", record, encoder[: len(encoder) // 2]))
    words["an encoder of another kind"] = _word(courier.carry(service, "train", record, b"PK" + encoder[2:] * 2))
    words["no encoder"] = _word(courier.carry(service, "train", record, None))
    return words


def _word(reply):
    fields, update = reply
    return fields.get("failure", "answered") if update is None else "answered"
"""
# Added to the ServerApp: the coordinator keeps what its bundle sent.
KEEPING = """

_fields_honestly = fields_of


def fields_of(reply):
    fields = _fields_honestly(reply)
    if "taken" in reply.content.config_records:
        taken = reply.content["taken"]
        place = Path({place!r})
        (place / f"{{fields['site']}}.json").write_text(taken["told"])
        (place / f"{{fields['site']}}.bytes").write_bytes(taken["taken"])
    return fields
"""


class Watched(Hospitals):
    """Hospitals whose images and settings have canaries as well, and, as root, with an account for each program."""

    @property
    def apart(self) -> bool:
        return bool(self.app_users)

    def make_sites(self) -> None:
        """Write canaries into pixels and `site.yaml`, and give each file its owner."""
        super().make_sites()
        for site in self.sites:
            images = np.load(self.site(site) / "cache" / "images.npy", mmap_mode="r+")
            for image in range(len(images)):
                row = (self.canaries.text(f"{site} pixels of image {image}") * 8)[: images.shape[2]]
                images[image, 0, : len(row)] = np.frombuffer(row.encode(), np.uint8)
            images.flush()
            file = self.site(site) / "site.yaml"
            file.write_text(f"{file.read_text()}# {self.canaries.text(f'{site} site.yaml')}\n")
            if self.apart:
                self._give(site)

    def _give(self, site: str) -> None:
        folder = self.site(site)
        folder.chmod(0o755)  # as /etc is: its files' own rights have to do
        (folder / "state").mkdir(exist_ok=True)
        for name in ("cache", "state"):
            accounts.own(folder / name, accounts.SERVICE)
        for name in ("salt", *PRIVATE):
            os.chown(folder / "cache" / name, 0, 0)
        os.chown(folder / "site.yaml", 0, accounts.SERVICE)
        (folder / "site.yaml").chmod(0o640)
        socket = self.folder / "serve" / site
        socket.mkdir(parents=True)
        accounts.own(socket, accounts.SERVICE, mode=0o750)
        os.chown(socket, accounts.SERVICE, int(self.app_users[site]))
        for name in ("task", "nodes"):
            (self.folder / name).mkdir(exist_ok=True)
        # As it is installed, but that these accounts have no names.
        script = (DEPLOY / "flwr-clientapp").read_text()
        for words, number in {'$(id -u "$user")': "$user", '$(id -g "$user")': "$user"}.items():
            assert words in script
            script = script.replace(words, number)
        script = script.replace("--init-groups", "--clear-groups")
        (self.folder / "task" / "flwr-clientapp").write_text(script)
        (self.folder / "task" / "flwr-clientapp").chmod(0o755)

    def _places(self, site: str, var: Path) -> dict[str, str]:
        own = {"/opt/sscxr/task": str(self.folder / "task")} if self.apart else {}
        return super()._places(site, var) | own

    def start(self, name: str, command: list, env: dict, cwd: Path, *, of: str = "") -> object:  # type: ignore[override,type-arg]
        """Start a part under its account."""
        site = name.removesuffix("-app").removesuffix("-service")
        if self.apart and site in self.sites:
            if name.endswith("-service"):
                command = [*accounts.prefix(accounts.SERVICE, int(self.app_users[site])), *command]
            else:
                node = self.folder / "nodes" / site
                accounts.own(node, accounts.NODE, mode=0o711)
                (node / "run").chmod(0o711)
                command = [*accounts.prefix(accounts.NODE, capable=name.endswith("-app")), *command]
        return super().start(name, command, env, cwd, of=of)

    def places(self, site: str) -> list[str]:
        """What the bundle looks for at a site: images, tables, settings, state, keys, the export."""
        folder, node = self.site(site), self.folder / "nodes" / site
        names = ("site.yaml", "node-key", "cache", "state")
        cache = ("images.npy", "index.csv", "salt", "quarantine.csv", "ledger.jsonl")
        found = [folder / name for name in names] + [folder / "cache" / name for name in cache]
        found += [node / "credentials" / "node-key", node / "credentials" / "superexec-secret"]
        found.append(self.exports[site].folder)  # the bundle itself is not to name a file of it
        return [str(path) for path in found]


@pytest.fixture(scope="module")
def hospitals() -> Iterator[Watched]:
    with services.short_folder() as folder:
        apart = accounts.available()
        with Watched(
            folder,
            SITES,
            behind_nginx=NGINX is not None,
            record=folder / "record",
            services=True,
            app_users={site: str(user) for site, user in zip(SITES, accounts.APPS, strict=False) if apart},
        ) as deployment:
            deployment.start_all()
            yield deployment
        assert deployment.pids() == []


@pytest.fixture(scope="module")
def found(hospitals: Watched) -> Found:
    """After a round of the hostile bundle."""
    kept = hospitals.var / "kept"
    kept.mkdir()
    places = {site: hospitals.places(site) if hospitals.apart else [] for site in SITES}
    if hospitals.apart:
        for export in hospitals.exports.values():  # read by the engineer who prepares it
            accounts.own(export.folder, 0)
    hostile = HOSTILE.format(places=json.dumps(places), take=TAKE)
    hospitals.app = hospitals.app_with("hostile", hostile, KEEPING.format(place=str(kept)))
    out = hospitals.var / "runs" / "hostile"
    settings = (
        "federation.rounds=1",
        "federation.evaluate_every=1",
        "run.name=hostile",
        "data.test_share=0.3",
    )
    with Watch(hospitals.var / "superlink.db") as watch:
        hospitals.run(out, *settings)
        ended = hospitals.wait(out, limit=500)
    assert ended.state == "finished", f"{ended}\n{hospitals.tail()}"
    return look(hospitals, out, watch)


def told(hospitals: Watched, site: str) -> dict[str, dict[str, str]]:
    loaded: dict[str, dict[str, str]] = json.loads((hospitals.var / "kept" / f"{site}.json").read_text())
    return loaded


@pytest.mark.skipif(
    "not accounts.available()", reason="wants root, and packages that other accounts can read"
)
@pytest.mark.parametrize("site", SITES)
def test_the_bundle_opens_nothing_of_the_hospital(hospitals: Watched, found: Found, site: str) -> None:
    opened = told(hospitals, site)["found"]
    places = hospitals.places(site)
    assert opened == dict.fromkeys([*places, "processes"], "PermissionError")
    assert (hospitals.var / "kept" / f"{site}.bytes").read_bytes() == b""


@pytest.mark.parametrize("site", SITES)
def test_what_it_takes_would_be_found(hospitals: Watched, found: Found, site: str) -> None:
    """The same code with the rights to read, and the same search: each kind of canary."""
    here: dict[str, object] = {"os": os}
    exec(TAKE, here)
    opened, taken = here["take"](hospitals.places(site))  # type: ignore[operator]
    assert set(opened.values()) == {"opened"}
    tokens = {hit.token for hit in Search(hospitals.canaries).blob(taken, "taken")}
    kinds = {re.sub(r"\d+", "", hospitals.canaries.places.get(token, "")) for token in tokens}
    assert {f"{site} site.yaml", f"{site} pixels of image "} <= kinds
    assert (hospitals.site(site) / "cache" / "salt").read_bytes() in taken


@pytest.mark.parametrize("site", SITES)
def test_whatever_else_it_asks_of_the_service_is_refused(hospitals: Watched, found: Found, site: str) -> None:
    asked = told(hospitals, site)["asked"]
    methods = {name: word for name, word in asked.items() if name.startswith("/")}
    assert set(methods.values()) == {"UNIMPLEMENTED"}
    assert {name: word for name, word in asked.items() if name not in methods} == dict.fromkeys(
        [
            "a path",
            "a folder as run",
            "a file as state",
            "a later round",
            "an interpolation",
            "a list for a text",
        ],
        "request",
    ) | dict.fromkeys(["half an encoder", "an encoder of another kind", "no encoder", "again"], "request") | {
        "another recipe": "not approved"
    }
    log = hospitals.logs()[f"{site}-service"]
    refused = [line for line in log.splitlines() if line.startswith("ERROR")]
    assert len(refused) == len(asked), log
    for words in (
        "is not a method of this service",
        "unexpected: 1",
        "not among those that site.yaml approves",
        "a repeat",
    ):
        assert any(words in line for line in refused), words
    assert len(re.findall("sent: ", log)) >= 2


@pytest.mark.parametrize("place", ["wire", "rows", "database", "logs", "report", "release", "run", "disk"])
def test_no_canary_reaches_the_coordinator(found: Found, place: str) -> None:
    assert found.server[place] == set()


@pytest.mark.parametrize("site", SITES)
def test_no_key_and_no_salt_reaches_the_coordinator(hospitals: Watched, found: Found, site: str) -> None:
    salt = (hospitals.site(site) / "cache" / "salt").read_bytes()
    key = (hospitals.site(site) / "node-key").read_bytes().splitlines()[3]
    files = [
        file for top in (hospitals.record, hospitals.var) if top for file in top.rglob("*") if file.is_file()
    ]
    assert len(files) > 10
    for file in files:
        data = file.read_bytes()
        assert not any(secret in data for secret in (salt, salt.hex().encode(), key)), file


def test_the_round_was_done(found: Found) -> None:
    rows = (found.out / "sites.csv").read_text().splitlines()[1:]
    assert [row.count("folded") for row in rows] == [1, 1]
