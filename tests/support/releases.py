"""Small encoders, runs and releases, and a file server that does what bad networks do."""

import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sscxr.evaluation.gains import Comparison, Probe
from sscxr.models.encoder import build, model_args
from sscxr.release import release
from sscxr.release.card import Card, SiteData

NAME = "vit_tiny_patch16_224"
SIZES = {"img_size": 32, "patch_size": 8, "in_chans": 1, "depth": 2}


def encoder(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(NAME, **SIZES, drop_path=0.2)


def a_card(**changes: Any) -> Card:
    probe = Probe("pneumonia", "paediatric", "linear", 0.912, 0.874, 0.945, 500, 300, 120, 60, 7)
    plain = Probe("pneumonia", "paediatric", "linear", 0.801, 0.742, 0.853, 500, 300, 120, 60, 7)
    facts: dict[str, Any] = {
        "name": "demo",
        "data": [
            SiteData("north", 1234, 9, ["CC BY 4.0"]),
            SiteData("idc", 160, 120, ["CC BY-NC-SA 4.0", "CC BY 4.0", "CC BY 4.0"]),
            SiteData("silent", None),
        ],
        "rounds": 12,
        "settings": "run:\n  name: demo\n",
        "code_version": "0.1.0",
        "probes": [Comparison(probe, plain, 0.111, 0.062, 0.160)],
    }
    return Card(**(facts | changes))


def write(folder: Path, model: torch.nn.Module | None = None, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "architecture": NAME,
        "model_args": model_args(**SIZES),
        "mean": 0.5,
        "std": 0.25,
    }
    return release.write_encoder(model or encoder(), folder, card=a_card(), **(settings | changes))


def a_run(folder: Path, seed: int = 0) -> Path:
    """A finished run's folder, as far as a release reads it."""
    model = encoder(seed)
    write(folder / "encoder", model)
    checkpoint = folder / "checkpoints" / "round-00012"
    checkpoint.mkdir(parents=True)
    safetensors.torch.save_file(
        model.state_dict() | {"head.x": torch.zeros(1)}, checkpoint / "encoder.safetensors"
    )
    return folder


def key_files(folder: Path, name: str = "release") -> tuple[Path, Path]:
    """A new private and public key, in PEM."""
    key = Ed25519PrivateKey.generate()
    forms = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, *forms))
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


def before_numbers(folder: Path) -> Path:
    """Unpack what sscxr 0.1.0 wrote at commit f9d7939, before releases had numbers.

    `encoder` as a run wrote it, the signed `release` that was made of it, and its key, `release.pub`.
    """
    with tarfile.open(Path(__file__).parents[1] / "release" / "before-numbers.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@dataclass
class Site:
    """What a file server has, and how it fails.

    Attributes:
        folder: its files.
        asked: (name, first byte asked for) of each request.
        cuts: bytes after which the next answers about the weights are cut off.
        ranges: whether it knows ranges; shift: bytes by which it gets them wrong.
        statuses: of the next answers, instead of a file.
        redirect: where every request is sent.
        pause: seconds between chunks of 64 KiB.
    """

    folder: Path
    asked: list[tuple[str, int]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    shift: int = 0
    statuses: list[int] = field(default_factory=list)
    redirect: str = ""
    pause: float = 0.0
    url: str = ""

    def starts(self) -> list[int]:
        """The first bytes asked for, of the weights."""
        return [start for name, start in self.asked if name == release.WEIGHTS]


@contextmanager
def served(folder: Path) -> Iterator[Site]:
    """Serve a folder on loopback."""
    site = Site(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(ConnectionError):  # whoever asked has gone
                answer(self, site)

        def log_message(self, *_: Any) -> None:
            pass

    with listening(Handler) as site.url:
        yield site


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Answer requests on loopback within the block; yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(handler: BaseHTTPRequestHandler, site: Site) -> None:
    """Answer one request as the site would."""
    name = handler.path.rpartition("/")[2]
    wanted = handler.headers.get("Range", "")
    start = int(wanted[6:-1]) if wanted else 0
    site.asked.append((name, start))
    file = site.folder / name
    status = site.statuses.pop(0) if site.statuses else 200 if file.is_file() else 404
    if site.redirect:
        handler.send_response(302)
        handler.send_header("Location", site.redirect + name)
        handler.end_headers()
        return
    if status != 200:
        handler.send_error(status)
        return
    data = file.read_bytes()
    if wanted and site.ranges and start >= len(data):
        handler.send_error(416)
        return
    if wanted and site.ranges:
        start += site.shift
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        data = data[start:]
    else:
        handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    if site.cuts and name == release.WEIGHTS:
        data = data[: site.cuts.pop(0)]
    for place in range(0, len(data), 1 << 16):
        handler.wfile.write(data[place : place + (1 << 16)])
        time.sleep(site.pause)
