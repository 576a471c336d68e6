"""Runs every check in order: the two files, this machine, the connection to the server, the site's images."""

import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client.doctor import bandwidth, data, fleet, machine, network, privacy, service
from client.doctor.checks import Check, failed, guarded, warning
from client.doctor.network import Server
from client.settings import SiteError, SiteSettings, read_settings
from sscxr import config as configs
from sscxr.config import Config, ConfigError
from sscxr.federation.join import Join, JoinError


@dataclass(frozen=True)
class Asked:
    """The machine and files to examine.

    Attributes:
        site: the `site.yaml`; None: the coordinator's machine.
        join: the join file, in place of the one that `site.yaml` names.
        out: the coordinator's folder of runs.
        files: a folder of the site's own files; a sample is decoded.
        clock: this machine's clock, seconds since 1970.
    """

    site: Path | None = None
    join: Path | None = None
    out: Path | None = None
    files: Path | None = None
    clock: fleet.Clock = time.time


def examine(asked: Asked) -> Iterator[Check]:
    """Yield every check as soon as it is done. Checks that depend on a failed one are left out."""
    settings = None
    try:
        settings = read_settings(asked.site) if asked.site else None
    except SiteError as error:
        yield failed("settings", str(error), "correct site.yaml; `sscxr site init` writes one with every key")
    file = asked.join or (Path(settings.join) if settings and settings.join else None)
    join, recipe = None, configs.load()
    try:
        join = Join.read(file) if file else None
        recipe = _recipe(join) if join else recipe
    except JoinError as error:
        yield failed("join file", str(error), "ask the coordinator for a new one")
    except ConfigError as error:
        yield failed("recipe", str(error), "install the coordinator's version of sscxr")
    if join or not file:
        yield from machine.settings_and_join(settings, join)
    yield from _machine(asked, settings, join, recipe)
    yield from _network(asked, settings, join)
    if asked.files:
        yield from guarded("files", data.files, asked.files)
    if settings:
        yield from guarded("cache", data.cache, settings, recipe)
        yield from guarded("privacy", privacy.privacy, settings, recipe)
        if join:
            yield from guarded("rounds", data.rounds, settings, recipe)


def _recipe(join: Join) -> Config:
    """Return the run's settings, as far as the join file has them."""
    return configs.loads(join.recipe, partial=True)


def _machine(
    asked: Asked, settings: SiteSettings | None, join: Join | None, recipe: Config
) -> Iterator[Check]:
    if join:
        yield from guarded("versions", machine.versions, join)
        yield from guarded("recipe", machine.recipe, join, recipe)
        if settings:
            yield from guarded("approval", machine.approval, join, settings)
            yield from guarded("members", machine.members, recipe, settings)
            yield from guarded("policy", machine.policy, settings, recipe)
    if settings:
        yield from guarded("name", machine.name, settings)
        if asked.site:
            yield from guarded("service", service.service, settings, asked.site)
        yield from guarded("device", machine.device, join, settings, recipe)
        if join:
            yield from guarded("threads", machine.threads, recipe, settings)
        yield from guarded("disk", machine.disk, "disk", Path(settings.state), join)
        yield from guarded("cache disk", machine.cache_disk, settings)
    if asked.out:
        yield from guarded("disk", machine.disk, "disk", asked.out, join)


def _network(asked: Asked, settings: SiteSettings | None, join: Join | None) -> Iterator[Check]:
    if settings is None and join is None:
        return
    if not (settings and settings.superlink) and join is None:
        yield warning(
            "server", "none named: the connection is not checked", "give a join file, or set superlink"
        )
        return
    try:
        server = _server(settings, join)
    except (OSError, ValueError) as error:
        yield failed("server", f"{error}", "correct superlink and ca in site.yaml")
        return
    yield from guarded("proxy", network.proxy, server)
    for name, check in (
        ("host name", network.resolves),
        ("port", network.listens),
        ("certificate", network.certificate),
    ):
        found = list(guarded(name, check, server))
        yield from found
        if any(one.state == "failed" for one in found):
            return
    yield from _handshake(asked, settings, server)
    if join:
        yield from guarded("bandwidth", bandwidth.bandwidth, server, join)


def _handshake(asked: Asked, settings: SiteSettings | None, server: Server) -> Iterator[Check]:
    key = None
    if settings and settings.key:
        key, found = fleet.read_key(Path(settings.key))
        yield found
    elif settings:
        yield warning("key file", "none named", "set key in site.yaml; `sscxr site init` makes one")
    yield from guarded("node keys", fleet.fleet, server, key, asked.clock)


def _server(settings: SiteSettings | None, join: Join | None) -> Server:
    """Return the server that the SuperNode will connect to, from site.yaml or else the join file."""
    address = (settings.superlink if settings else "") or (join.superlink if join else "")
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"superlink {address!r} is not host:port")
    ca = join.ca if join else ""
    if settings and settings.ca:
        ca = Path(settings.ca).read_text(encoding="utf-8")
    server = Server(host.strip("[]"), int(port), ca)
    try:
        server.context()
    except (ssl.SSLError, ValueError, TypeError):  # TypeError: text that is not ASCII
        raise ValueError(
            "the file that ca names is not a PEM certificate, or has non-ASCII characters beside it"
        ) from None
    return server
