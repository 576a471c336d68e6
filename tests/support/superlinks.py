"""Servers as hospitals meet them: certificates good and bad, and Flower's own fleet API under any clock."""

import datetime
import email.utils
import os
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.doctor.network import Server

PROBE_BYTES = 2 << 20
Key = ec.EllipticCurvePrivateKey


class Authority:
    """A certificate authority, valid for `days` from yesterday."""

    def __init__(self, folder: Path, days: float = 365) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, f"an authority {os.urandom(4).hex()}")]
        )
        own = self._built(self._name, self._key, -1, days)
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.pem = own.sign(self._key, hashes.SHA256()).public_bytes(forms.Encoding.PEM).decode()

    def issue(self, *names: str, start: float = -1, days: float = 365) -> tuple[str, str]:
        """Files of a certificate and its key, made out to names and addresses (localhost); days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        common = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")])
        general = [
            x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
            for name in names or ("localhost",)
        ]
        leaf = self._built(common, key, start, days).add_extension(
            x509.SubjectAlternativeName(general), critical=False
        )
        stem = self.folder / os.urandom(4).hex()
        signed = leaf.sign(self._key, hashes.SHA256()).public_bytes(forms.Encoding.PEM)
        stem.with_suffix(".crt").write_bytes(signed)
        private = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
        stem.with_suffix(".key").write_bytes(private)
        return str(stem.with_suffix(".crt")), str(stem.with_suffix(".key"))

    def _built(self, name: x509.Name, key: Key, start: float, days: float) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=start))
            .not_valid_after(now + datetime.timedelta(days=days))
        )


class Probe(BaseHTTPRequestHandler):
    """The bandwidth probe, at `rate` bytes a second where that is set."""

    protocol_version = "HTTP/1.1"
    rate: float = 0.0
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(PROBE_BYTES))
        self.end_headers()
        for _ in range(PROBE_BYTES >> 14):
            self._wait(1 << 14)
            self.wfile.write(os.urandom(1 << 14))

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        while left > 0:
            self._wait(1 << 14)
            left -= len(self.rfile.read(min(left, 1 << 14)))
        self.send_response(204)
        self.end_headers()

    def _wait(self, size: int) -> None:
        if self.rate:
            time.sleep(size / self.rate)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hangs up is what these tests are about


@contextmanager
def https(certificate: tuple[str, str] | None, handler: Any = Probe) -> Iterator[int]:
    """A small web server at localhost; its port. None: without TLS."""
    server: socketserver.BaseServer = _Quiet(("127.0.0.1", 0), handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]  # type: ignore[misc]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class SuperLink:
    """Flower's own server application, the probe beside it, its clock `shift` seconds off ours.

    Attributes:
        server: how a site reaches it.
        shift: seconds that its clock, and its `Date` header, is ahead of the real time.
    """

    def __init__(self, authority: Authority) -> None:
        from flwr.superlink.main import create_app

        self.shift = 0.0
        self._app: Any = create_app()
        self._authority = authority
        self.state: Any = self._app.state.linkstate_factory.state()

    def now(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.shift)

    def register(self, key: Key) -> int:
        """As `flwr supernode register` does; the node's id."""
        public = key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
        node: int = self.state.create_node("a", "b", public, 0)
        return node

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def dated(event: Any) -> None:
            if event["type"] == "http.response.start":
                date = email.utils.format_datetime(self.now(), usegmt=True).encode()
                event["headers"] = [*event.get("headers", []), (b"date", date)]
            await send(event)

        if scope["type"] == "http" and scope["path"] == "/v1/probe":
            while scope["method"] == "POST" and (await receive()).get("more_body"):
                pass
            body = os.urandom(PROBE_BYTES) if scope["method"] == "GET" else b""
            await dated({"type": "http.response.start", "status": 200 if body else 204, "headers": []})
            await dated({"type": "http.response.body", "body": body})
        else:
            await self._app(scope, receive, dated)

    @contextmanager
    def running(self, patch: pytest.MonkeyPatch) -> Iterator["SuperLink"]:
        """Served at a free port, over TLS."""
        import uvicorn
        from flwr.superlink.routers.fleet import node_auth

        patch.setattr(node_auth, "now", self.now)
        certificate, key = self._authority.issue()
        config = uvicorn.Config(
            self,
            "127.0.0.1",
            0,
            ssl_certfile=certificate,
            ssl_keyfile=key,
            log_level="error",
            date_header=False,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            self.server = Server("localhost", port, self._authority.pem)
            yield self
        finally:
            server.should_exit = True
            thread.join()
