"""The wire that tests cut: bytes pass, stop and go on, slowly where asked, and are written down in plain text."""

import contextlib
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from wires import Wire

ROOT = Path(__file__).resolve().parents[2]


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


@pytest.fixture
def echo() -> Iterator[socketserver.ThreadingTCPServer]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def said(stream: socket.socket, data: bytes) -> bytes:
    stream.sendall(data)
    back = b""
    while len(back) < len(data):
        back += stream.recv(1 << 16)
    return back


def test_it_is_cut_and_mended(echo: socketserver.ThreadingTCPServer) -> None:
    wire = Wire(echo.server_address[1])
    with socket.create_connection(("127.0.0.1", wire.port), timeout=10) as stream:
        assert said(stream, b"a") == b"a"
        stream.settimeout(0.3)
        with wire.cut():
            stream.sendall(b"b")
            with pytest.raises(TimeoutError):
                stream.recv(1)
        stream.settimeout(10)
        assert stream.recv(1) == b"b"
        wire.reset()
        assert stream.recv(1) == b""
    wire.close()


def test_it_is_slow(echo: socketserver.ThreadingTCPServer) -> None:
    wire = Wire(echo.server_address[1])
    wire.rate = 200_000
    with socket.create_connection(("127.0.0.1", wire.port), timeout=10) as stream:
        began = monotonic()
        assert said(stream, bytes(100_000)) == bytes(100_000)
    assert monotonic() - began >= 0.5
    wire.close()


def test_nobody_behind_it_is_told(echo: socketserver.ThreadingTCPServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        wire = Wire(unused.getsockname()[1])
        with (
            contextlib.suppress(ConnectionResetError),
            socket.create_connection(("127.0.0.1", wire.port), timeout=10) as stream,
        ):
            assert stream.recv(1) == b""
        wire.close()


def test_it_hears_behind_the_tls_end(echo: socketserver.ThreadingTCPServer, tmp_path: Path) -> None:
    subprocess.run([ROOT / "deploy" / "make-ca.sh", tmp_path, "localhost"], check=True, capture_output=True)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    client = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    inner = Wire(echo.server_address[1], server=server)
    outer = Wire(inner.port, server=server, client=client, record=tmp_path / "heard")
    with socket.create_connection(("127.0.0.1", outer.port), timeout=10) as plain:
        stream = client.wrap_socket(plain, server_hostname="localhost")
        assert said(stream, b"a word") == b"a word"
    outer.close()
    inner.close()
    heard = {file.name.split("-")[1]: file.read_bytes() for file in (tmp_path / "heard").iterdir()}
    assert heard == {"up": b"a word", "down": b"a word"}
