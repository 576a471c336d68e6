"""Checks of the connection to the server: its name, its port, and its certificate."""

import datetime
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509

from client.doctor.checks import Check, failed, judged, ok, warning

TIMEOUT = 5.0  # seconds for a connection
_SOON = 30  # days before a certificate expires that give a warning
# OpenSSL's verdicts (openssl/x509_vfy.h)
_NOT_YET, _EXPIRED, _WRONG_NAME, _WRONG_IP = 9, 10, 62, 64
_RENEW = "ask the coordinator to renew it"


@dataclass(frozen=True)
class Server:
    """Attributes: host name or address, port, and the PEM text of the CA; empty: a publicly trusted one."""

    host: str
    port: int
    ca: str

    @property
    def address(self) -> str:
        """host:port, with an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def context(self) -> ssl.SSLContext:
        """Return an SSL context like that of Flower's client."""
        import httpx

        if not self.ca:
            return httpx.create_ssl_context()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.ca)
        return context


def proxy(server: Server) -> Iterator[Check]:
    """Warn of a proxy in the environment: Flower's client uses it, and the checks here do not."""
    proxies = urllib.request.getproxies()
    chosen = proxies.get("https") or proxies.get("all")
    if chosen and not urllib.request.proxy_bypass(server.host):
        yield warning(
            "proxy",
            "the environment sends HTTPS through a proxy; name, port and bandwidth are tried without it",
            "if the direct connection works, add the server's name to NO_PROXY for the SuperNode",
        )


def resolves(server: Server) -> Iterator[Check]:
    """Check that the host name has an address."""
    try:
        found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except OSError:
        yield failed(
            "host name",
            f"{server.host} has no address here",
            "correct superlink in site.yaml, or in the join file, or ask your network's administrator about DNS",
        )
        return
    yield ok("host name", f"{server.host} is {', '.join(sorted({str(one[4][0]) for one in found}))}")


def listens(server: Server) -> Iterator[Check]:
    """Check that the port accepts connections."""
    advice = "check that the server runs, that its port is right, and that no firewall blocks it"
    try:
        socket.create_connection((server.host, server.port), timeout=TIMEOUT).close()
    except ConnectionRefusedError:
        yield failed("port", f"{server.port} is closed: the connection was refused", advice)
    except TimeoutError:
        yield failed("port", f"{server.port} does not answer within {TIMEOUT:.0f} s", advice)
    except OSError as error:
        yield failed("port", f"{server.port} cannot be reached ({error.strerror})", advice)
    else:
        yield ok("port", f"{server.port} is open")


def certificate(server: Server) -> Iterator[Check]:
    """Check that the certificate is signed by the CA, made out to the host name, and valid for long enough."""
    name = "certificate"
    try:
        leaf = _shown(server, server.context())
    except ssl.SSLCertVerificationError as error:
        yield _refused(server, error)
        return
    except (ssl.SSLError, OSError):
        if _speaks_http(server):
            yield failed(name, "plain HTTP at this port, no TLS", "use the port that serves HTTPS")
        else:
            yield failed(
                name, "no TLS connection", "check that the port serves HTTPS and no proxy intervenes"
            )
        return
    authorities = x509.load_pem_x509_certificates(server.ca.encode()) if server.ca else []
    ends = min(one.not_valid_after_utc for one in [leaf, *authorities])
    days = (ends - datetime.datetime.now(datetime.UTC)).days
    whose = "" if ends == leaf.not_valid_after_utc else "the CA's, "
    value = f"{whose}valid until {ends:%Y-%m-%d}, {days} days"
    yield judged(name, value, fails=False, warns=days < _SOON, advice=_RENEW)


def _refused(server: Server, error: ssl.SSLCertVerificationError) -> Check:
    """Return why OpenSSL refused a certificate, from its verdict and the certificate itself."""
    name, code = "certificate", error.verify_code
    unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    leaf = _shown(server, unchecked)
    now = datetime.datetime.now(datetime.UTC)
    if code == _EXPIRED and now <= leaf.not_valid_after_utc:
        return failed(name, "its CA, or one between, has expired", "ask the coordinator for the new CA")
    if code == _EXPIRED:
        return failed(name, f"expired on {leaf.not_valid_after_utc:%Y-%m-%d}", _RENEW)
    if code == _NOT_YET:
        value = f"not valid before {max(leaf.not_valid_before_utc, now):%Y-%m-%d %H:%M} UTC"
        return failed(name, value, "check that this machine's clock is right; if it is, " + _RENEW)
    if code in (_WRONG_NAME, _WRONG_IP):
        value = f"made out to {_names(leaf)}, not to {server.host}"
        return failed(name, value, "correct superlink in site.yaml, or ask for a certificate of that name")
    signer = "the CA given" if server.ca else "a publicly trusted CA"
    advice = "ask the coordinator for the CA's certificate and set ca in site.yaml; if it is the right one, "
    return failed(
        name, f"not signed by {signer}", advice + "something intercepts the connection to the server"
    )


def _shown(server: Server, context: ssl.SSLContext) -> x509.Certificate:
    with (
        socket.create_connection((server.host, server.port), timeout=TIMEOUT) as connection,
        context.wrap_socket(connection, server_hostname=server.host) as secure,
    ):
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")


def _names(leaf: x509.Certificate) -> str:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "no host name"
    return ", ".join(str(one.value) for one in names)[:200] or "no host name"


def _speaks_http(server: Server) -> bool:
    try:
        with socket.create_connection((server.host, server.port), timeout=TIMEOUT) as connection:
            connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
            return connection.recv(5) == b"HTTP/"
    except OSError:
        return False
