"""Estimates how long a round's payload takes to the server and back, from a probe of a few MB."""

import http.client
import os
import time
from collections.abc import Iterator

from client.doctor.checks import Check, judged, warning
from client.doctor.network import Server
from sscxr.federation.join import Join

PROBE_BYTES = 2 << 20  # the size of the server's probe, and the most that it accepts
_LONGEST = 10.0  # seconds per direction; on a slow link the bytes transferred by then give the speed
_CHUNK = 1 << 16
_ENOUGH = 1 / 3  # share of the deadline that transfer may take without a warning; the rest is for training


def bandwidth(server: Server, join: Join) -> Iterator[Check]:
    """Check download and upload speed, and a round's transfer time against its deadline."""
    if not join.probe:
        yield _not_measured("the join file names no probe")
        return
    connection = http.client.HTTPSConnection(
        server.host, server.port, context=server.context(), timeout=3 * _LONGEST
    )
    try:
        connection.connect()  # TCP and TLS beforehand: a SuperNode keeps its connection
        down = _download(connection, join.probe)
        up = _upload(connection, join.probe)
    except NoProbeError as error:
        yield _not_measured(str(error))
        return
    except (OSError, http.client.HTTPException) as error:
        yield _not_measured(f"the probe broke off ({type(error).__name__})")
        return
    finally:
        connection.close()
    megabytes = join.payload
    seconds = 8 * (megabytes.down_mb / down + megabytes.up_mb / up)
    value = (
        f"{down:.3g} Mbit/s down, {up:.3g} up: a round's {megabytes.down_mb:g} MB down and {megabytes.up_mb:g} MB "
        f"up take {seconds:.3g} s of its {join.deadline_s:g} s"
    )
    advice = "a faster link, or ask the coordinator for a smaller codec or a longer deadline"
    fails, warns = seconds > join.deadline_s, seconds > _ENOUGH * join.deadline_s
    yield judged("bandwidth", value, fails=fails, warns=warns, advice=advice)


class NoProbeError(Exception):
    """The server does not answer the probe as it should."""


def _not_measured(why: str) -> Check:
    return warning(
        "bandwidth", f"not measured: {why}", "ask the coordinator to serve the probe, or try again"
    )


def _download(connection: http.client.HTTPSConnection, path: str) -> float:
    """Return the download speed in Mbit/s."""
    started = time.monotonic()
    connection.request("GET", path)
    response = connection.getresponse()
    if response.status != http.client.OK:
        raise NoProbeError(f"the server answers HTTP {response.status}")
    got, seconds = 0, 0.0
    while seconds < _LONGEST and (chunk := response.read1(_CHUNK)):
        got += len(chunk)
        seconds = time.monotonic() - started
    if got < _CHUNK and seconds < _LONGEST:
        raise NoProbeError(f"the server's probe sends only {got} bytes")
    if not response.isclosed():  # a slow link: do not wait for the rest
        connection.close()
    return got * 8e-6 / seconds


def _upload(connection: http.client.HTTPSConnection, path: str) -> float:
    """Return the upload speed in Mbit/s."""
    body = os.urandom(PROBE_BYTES)  # incompressible
    connection.putrequest("POST", path)
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Content-Length", str(PROBE_BYTES))
    connection.endheaders()
    started, sent, seconds = time.monotonic(), 0, 0.0
    try:
        while sent < PROBE_BYTES and seconds < _LONGEST:
            connection.send(body[sent : sent + _CHUNK])
            sent, seconds = sent + _CHUNK, time.monotonic() - started
        if sent < PROBE_BYTES:
            raise TimeoutError
        response = connection.getresponse()
        response.read()
    except TimeoutError:  # a slow link: part of it is still buffered here, so the speed is an upper bound
        connection.close()
        return sent * 8e-6 / (time.monotonic() - started)
    seconds = time.monotonic() - started
    if response.status not in (http.client.OK, http.client.NO_CONTENT):
        raise NoProbeError(f"the server answers an upload with HTTP {response.status}")
    return PROBE_BYTES * 8e-6 / seconds
