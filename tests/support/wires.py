"""A way between two ports that a test can cut, slow down and listen to."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

_CHUNK = 1 << 16


class Wire:
    """A TCP proxy on loopback, in a thread of its own.

    Attributes:
        port: where it listens.
        rate: bytes a second in each direction of each connection; 0: as fast as it goes.
    """

    def __init__(
        self,
        target: int,
        *,
        listen: int = 0,
        server: ssl.SSLContext | None = None,
        client: ssl.SSLContext | None = None,
        record: Path | None = None,
    ) -> None:
        """Start.

        Args:
            target: the port on 127.0.0.1 that it leads to.
            server, client: end TLS here, and begin it anew towards the target; None: pass bytes on as they are.
            record: a folder that gets what crosses, a file a connection and direction, behind the TLS end.
        """
        self.rate = 0.0
        self._target, self._server, self._client, self._record = target, server, client, record
        if record:
            record.mkdir(parents=True, exist_ok=True)
        self._count = 0
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        starting = asyncio.start_server(self._connected, "127.0.0.1", listen, ssl=server)
        self._listener = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        self.port: int = self._listener.sockets[0].getsockname()[1]

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Within, nothing passes and nobody is told, as when a cable is pulled; then all goes on."""
        self._loop.call_soon_threadsafe(self._open.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._open.set)

    def cut_for(self, seconds: float) -> None:
        """Pass nothing for a while."""
        with self.cut():
            sleep(seconds)

    def reset(self) -> None:
        """End every connection there is, as a firewall does that forgot them."""
        self._loop.call_soon_threadsafe(self._abort)

    def close(self) -> None:
        """End; the thread is gone when this returns."""

        async def stop() -> None:
            self._listener.close()
            self._abort()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count += 1
        number = self._count
        await self._open.wait()
        try:
            name = "localhost" if self._client else None
            there = await asyncio.open_connection(
                "127.0.0.1", self._target, ssl=self._client, server_hostname=name
            )
        except OSError:  # nobody there: this end learns it as it would without us
            writer.transport.abort()
            return
        ways = [(reader, there[1], "up"), (there[0], writer, "down")]
        self._writers |= {writer, there[1]}
        try:
            await asyncio.gather(*(self._pass(*way, number) for way in ways))
        finally:
            for end in (writer, there[1]):
                self._writers.discard(end)
                end.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str, number: int
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._record:
                    with (self._record / f"{number:05d}-{way}").open("ab") as file:
                        file.write(data)
                if self.rate:
                    await asyncio.sleep(len(data) / self.rate)
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            if writer.can_write_eof():
                writer.write_eof()
            else:  # TLS has no half-closed connection
                writer.close()
