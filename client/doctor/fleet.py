"""Checks the clock and the node key by Flower's own signed handshake, without changing the node.

`ActivateNode` with a heartbeat interval of zero is always refused, and the kind of refusal answers both.
Flower 1.41 checks in this order (superlink/routers/fleet/node_auth.py, superlink/servicer/fleet/fleet_handlers.py):
1. the signed time: -5 s < server's clock - signed < 305 s, and the signature, otherwise HTTP 401;
2. the public key: a node must be registered with it, otherwise error 2004;
3. the heartbeat interval: error 2003, before the node's record is changed.
So a SuperNode that is running with the same key stays online, and one that is not stays offline. A real activation
would be refused for a node that is online, and deactivation would end its work.

We choose the signed time, so the point where it is just refused measures the server's clock, transfer time
included, far more finely than the second that an HTTP `Date` header resolves.
"""

import base64
import datetime
import email.utils
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec

from client.doctor.checks import Check, failed, judged, ok, warning
from client.doctor.network import Server

AHEAD, BEHIND = 5.0, 305.0  # seconds by which a site's clock may differ (see above)
_NEAR = 2.0  # seconds to a bound that give a warning
_ROUGH = 2.5  # seconds by which a clock read from `Date` may be wrong
_FINE = 0.2  # seconds, the precision of the bound
REGISTERED, UNKNOWN_KEY, REFUSED = "registered", "unknown key", "refused"
Clock = Callable[[], float]


@dataclass(frozen=True)
class Answer:
    """Attributes: one of the three words above, or another answer; server's minus our clock, s, roughly."""

    word: str
    skew: float | None


class Handshake:
    """A signed `ActivateNode` with any time, which changes nothing."""

    def __init__(self, server: Server, key: ec.EllipticCurvePrivateKey, clock: Clock) -> None:
        from flwr.supernode.fleet_http_client import FleetHttpClient

        self._key, self._clock, self._shift = key, clock, 0.0
        ca = server.ca.encode() or None
        self._client: Any = FleetHttpClient.from_server_address(server.address, False, ca, [self])
        self.close: Callable[[], None] = self._client.close

    def ask(self, shift: float = 0.0) -> Answer:
        """Send a request signed `shift` seconds after our clock.

        Raises:
            httpx.HTTPError: no answer.
        """
        import httpx
        from flwr.proto.fleet_pb2 import ActivateNodeRequest
        from flwr.supercore.error import ApiErrorCode, FlowerError
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        self._shift = shift
        before = self._clock()
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(self._key.public_key()), heartbeat_interval=0
        )
        try:
            self._client.ActivateNode(request)
            return Answer("accepted a heartbeat interval of zero", None)
        except httpx.HTTPStatusError as error:
            response = error.response
        except ValueError:  # HTTP 200 with a body that is not Flower's
            return Answer("no Flower answer", None)
        skew = _server_minus(response.headers.get("date"), (before + self._clock()) / 2)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            return Answer(REFUSED, skew)
        refusal = FlowerError.from_json(response.text)
        words = {
            ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL: REGISTERED,
            ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED: UNKNOWN_KEY,
        }
        code = refusal.code if refusal else None
        return Answer(words.get(code, f"HTTP {response.status_code}"), skew)  # type: ignore[call-overload]

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        """Sign as Flower's own interceptor does (supernode/node_auth_http_interceptor.py), with another time."""
        from flwr.common.constant import TIMESTAMP_HEADER
        from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

        moment = datetime.datetime.fromtimestamp(self._clock() + self._shift, datetime.UTC).isoformat()
        signature = sign_message(self._key, moment.encode("ascii"))
        public = public_key_to_bytes(self._key.public_key())
        context.request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = base64.b64encode(public).decode("ascii")
        context.request.headers[TIMESTAMP_HEADER] = moment
        context.request.headers[FLEET_HTTP_SIGNATURE_HEADER] = base64.b64encode(signature).decode("ascii")
        return call_next(context)


def _server_minus(date: str | None, ours: float) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp() + 0.5 - ours
    except ValueError:
        return None


def read_key(file: Path) -> tuple[ec.EllipticCurvePrivateKey | None, Check]:
    """Read a node's private key as `flower-supernode` would."""
    name, again = "key file", "set key in site.yaml to the private key that `sscxr site init` wrote"
    try:
        data, mode = file.read_bytes(), file.stat().st_mode
    except OSError as error:
        return None, failed(name, f"not readable ({error.strerror})", again)
    try:
        key = forms.load_ssh_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        public = data.lstrip().startswith((b"ecdsa-", b"ssh-", b"-----BEGIN PUBLIC"))
        what = "a public key" if public else "not a private key in OpenSSH's form, or one with a passphrase"
        return None, failed(name, what, again)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return None, failed(name, "a private key of another kind than elliptic curve", again)
    value = f"{key.curve.name}, {fingerprint(key)}"
    if mode & 0o077:
        return key, warning(name, f"{value}, readable by other users", "chmod 600 the key")
    return key, ok(name, value)


def fingerprint(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the public key's fingerprint as `ssh-keygen -l` prints it."""
    public = key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def fleet(
    server: Server, key: ec.EllipticCurvePrivateKey | None, clock: Clock = time.time
) -> Iterator[Check]:
    """Check the clock, and whether the key is registered.

    Args:
        key: None: only the clock is measured, with a temporary key.
        clock: this machine's clock, seconds since 1970.
    """
    import httpx

    with closing(Handshake(server, key or ec.generate_private_key(ec.SECP384R1()), clock)) as handshake:
        try:
            first = handshake.ask()
            if first.word not in (REGISTERED, UNKNOWN_KEY, REFUSED) or first.skew is None:
                yield _no_fleet(first)
                return
            skew = measure(handshake, first.skew)
            if skew is None:
                value = f"about {abs(first.skew):.0f} s off; not measured, as the server's answers vary"
                yield warning("clock", value, "try again; if it persists, inform the coordinator")
                return
            yield _clock(skew)
            if key is not None:
                # Signed with the server's time, so that a wrong clock does not hide the answer.
                yield _registration(handshake.ask(skew - 1.0).word)
        except httpx.HTTPError as error:
            yield failed(
                "node keys",
                f"no answer ({type(error).__name__})",
                "check that the server runs, and try again",
            )


def measure(handshake: Handshake, rough: float) -> float | None:
    """Return the server's minus our clock, s, to `_FINE`; None if no bound is found near the rough value."""
    low, high = rough + AHEAD - _ROUGH, rough + AHEAD + _ROUGH
    if handshake.ask(low).word == REFUSED or handshake.ask(high).word != REFUSED:
        return None
    while high - low > _FINE:
        middle = (low + high) / 2
        if handshake.ask(middle).word == REFUSED:
            high = middle
        else:
            low = middle
    return (low + high) / 2 - AHEAD


def _clock(skew: float) -> Check:
    side = "ahead of" if skew < 0 else "behind"
    value = (
        f"{abs(skew):.1f} s {side} the server's; Flower accepts {AHEAD:.0f} s ahead to {BEHIND:.0f} s behind"
    )
    fails = not -AHEAD < skew < BEHIND
    warns = not -AHEAD + _NEAR < skew < BEHIND - _NEAR
    return judged("clock", value, fails=fails, warns=warns, advice="set this machine's clock by NTP (chrony)")


def _registration(word: str) -> Check:
    if word == REGISTERED:
        return ok("registration", "the server knows this site's key")
    if word == UNKNOWN_KEY:
        advice = "send the coordinator node-key.pub (its fingerprint is above), or use the key that was sent"
        return failed("registration", "the server does not know this site's key", advice)
    return failed("registration", f"unknown: {word}", "try again; if it persists, inform the coordinator")


def _no_fleet(answer: Answer) -> Check:
    if answer.word in ("HTTP 502", "HTTP 503", "HTTP 504"):
        value = f"the server's proxy does not reach the SuperLink ({answer.word})"
        return failed("node keys", value, "ask the coordinator to start the SuperLink, and try again")
    value = f"the server does not answer as a SuperLink does ({answer.word})"
    advice = "correct superlink in site.yaml; the coordinator's proxy must pass /v1/fleet/ on"
    return failed("node keys", value, advice)
