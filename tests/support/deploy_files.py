"""The files of `deploy/` as they are, with the folders and ports of a test in place of their own."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from string import Template

from processes import free_port
from simulations import ROOT

DEPLOY = ROOT / "deploy"


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


def nginx_conf(own: Path, etc: Path, *, outside: int, behind: int) -> str:
    """`deploy/nginx.conf` for this user.

    Args:
        own: the folder of its pid, logs, temporary files and of what the probe sends.
        etc: of the server's certificate.
        outside: the port that it listens on.
        behind: the port that it passes on to.
    """
    text = (DEPLOY / "nginx.conf").read_text()
    temporary = "".join(
        f"    {kind}_temp_path {own}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    for was, now in {
        "user www-data;": "user root;" if os.getuid() == 0 else "",
        "worker_processes auto": "worker_processes 1",
        "/run/nginx.pid": f"{own}/pid",
        "/var/log/nginx": str(own),
        "/etc/sscxr": str(etc),
        "/var/lib/sscxr-probe": str(own),
        "127.0.0.1:8000": f"127.0.0.1:{behind}",
        "listen 8443 ssl": f"listen 127.0.0.1:{outside} ssl",
        "127.0.0.1:8445": f"127.0.0.1:{free_port()}",
        "http {\n": f"http {{\n{temporary}",
    }.items():
        assert was in text, f"deploy/nginx.conf has no {was!r} any more"
        text = text.replace(was, now)
    return text
