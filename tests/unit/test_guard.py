"""The guard of requests to addresses that somebody else chose: what it refuses, and where it really connects."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster.errors import InvalidInput
from cluster.settings import Settings
from serve.guard import Guard, is_of_a_network, is_public, system_resolve
from tests.listener import nobody

T = TypeVar("T")
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/png; x=y\r\nContent-Length: 5\r\n\r\nhello"
NOT_PUBLIC = [
    *(
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.100.100.200",
        "169.254.169.254",
    ),
    *("192.0.0.192", "198.18.0.1", "192.0.2.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("168.63.129.16", "192.88.99.1", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "fe80::1"),
    *("fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "64:ff9b::808:808"),
    *("64:ff9b:1::1", "2002:7f00:1::1", "2001:0:7f00:1::", "2001:db8::1", "3fff::1", "100::1", "5f00::1"),
]
METADATA = [
    *("169.254.169.254", "0.0.0.0", "::", "224.0.0.1", "fe80::1", "168.63.129.16", "fd00:ec2::254", "192.0.0.192"),
]
PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::1"]
HOSTILE = {
    "file": "file:///etc/passwd",
    "gopher": "gopher://example.com:70/x",
    "ftp": "ftp://example.com/x",
    "plain-http": "http://example.com/",
    "no-scheme": "//example.com/",
    "javascript": "javascript:alert(1)",
    "nothing": "",
    "no-host": "https:///x",
    "port-alone": "https://:443/",
    "loopback": "https://127.0.0.1/",
    "short-loopback": "https://127.1/",
    "decimal": "https://2130706433/",
    "octal": "https://0177.0.0.1/",
    "long-octal": "https://017700000001/",
    "hex": "https://0x7f000001/",
    "hex-parts": "https://0x7f.0x0.0x0.0x1/",
    "zero": "https://0/",
    "dotted-name-of-digits": "https://a.0x7f/",
    "dot-at-the-end": "https://127.0.0.1./",
    "localhost": "https://localhost/",
    "localhost.": "https://localhost./",
    "single-label": "https://intranet/",
    "name.": "https://example.com./",
    "mapped": "https://[::ffff:127.0.0.1]/",
    "mapped-hex": "https://[::ffff:7f00:1]/",
    "loopback-6": "https://[::1]/",
    "unspecified-6": "https://[::]/",
    "zone": "https://[fe80::1%25eth0]/",
    "nat64": "https://[64:ff9b::127.0.0.1]/",
    "6to4": "https://[2002:7f00:1::]/",
    "metadata": "https://169.254.169.254/latest/meta-data/",
    "user": "https://user@example.com/",
    "password": "https://user:secret@example.com/",
    "empty-user": "https://@example.com/",
    "two-ats": "https://example.com@127.0.0.1/",
    "backslash": "https://example.com\\@127.0.0.1/",
    "fragment-at": "https://127.0.0.1#@example.com/",
    "unicode-dots": "https://127。0。0。1/",
    "full-width": "https://\uff11\uff12\uff17.0.0.1/",
    "circled": "https://ⓛocalhost/",
    "soft-hyphen": "https://exam\u00adple.com/",
    "space": "https://exa mple.com/",
    "newline": "https://example.com/\r\nX: y",
    "tab": "https://exam\tple.com/",
    "nul": "https://example.com/\x00",
    "percent-host": "https://ex%61mple.com/",
    "brackets": "https://[::1/",
    "label-too-long": f"https://{'a' * 64}.com/",
    "too-long": f"https://example.com/{'a' * 3000}",
    "other-port": "https://example.com:22/",
    "port-too-high": "https://example.com:99999/",
    "port-zero": "https://example.com:0/",
    "port-no-number": "https://example.com:x/",
}


def never(host: str, port: int) -> Awaitable[Sequence[str]]:
    raise AssertionError(f"nobody may ask for {host}")


def names(*answers: Sequence[str]) -> tuple[Callable[[str, int], Awaitable[Sequence[str]]], list[str]]:
    """(a resolver that gives these answers in turn, the names that it was asked for)."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    return resolve, asked


class Server:
    """Answers every connection on loopback with the same bytes, and keeps what it was sent."""

    def __init__(self, answer: bytes = OK, *, tls: ssl.SSLContext | None = None, hold: bool = False) -> None:
        self.answer, self.tls, self.hold = answer, tls, hold
        self.seen: list[bytes] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self.answer)
            await writer.drain()
            if self.hold:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: Any) -> None:
        self._server.close()


async def got(guard: Guard, url: str, *, most_bytes: int = 100, wait_s: float = 10.0) -> bytes:
    found = await guard.get(url, field="url", most_bytes=most_bytes, wait_s=wait_s)
    assert found.media_type == "image/png"
    return found.content


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_what_is_not_of_the_whole_internet_is_not_public(address: str):
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_of_the_internet_is_public(address: str):
    assert is_public(ip_address(address))
    assert not is_of_a_network(ip_address(address))


@pytest.mark.parametrize("address", METADATA)
def test_a_closed_network_too_keeps_off_what_clouds_answer_to_machines(address: str):
    assert not is_of_a_network(ip_address(address))


@pytest.mark.parametrize("url", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_url_is_refused_before_anybody_is_asked(url: str):
    with pytest.raises(InvalidInput) as refused:
        asyncio.run(Guard(resolve=never).get(url, field="hook.url", most_bytes=1, wait_s=1))
    assert refused.value.field == "hook.url"


@pytest.mark.parametrize(
    "url",
    ["https://example.com", "https://example.com:443/a?b=c#d", "https://8.8.8.8/", "https://a.xn--p1ai/", "https://[2606:4700::1111]/"],
)  # fmt: skip
def test_an_honest_url_passes(url: str):
    assert "#" not in str(Guard().check(url, field="url"))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_a_name_of_a_private_address_is_refused_like_one_that_nobody_knows(address: str):
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError("nobody knows it")

    said = set()
    for resolve in (names([address])[0], names(["8.8.8.8", address])[0], names([])[0], unknown):
        with pytest.raises(InvalidInput) as refused:
            asyncio.run(Guard(resolve=resolve).get("https://evil.example/", field="url", most_bytes=1, wait_s=5))
        said.add(str(refused.value))
    assert said == {"the host of the URL has no public address"}


def test_the_systems_own_resolver_finds_loopback_and_it_is_refused():
    with pytest.raises(InvalidInput, match="no public address"):
        asyncio.run(Guard().addresses("localhost", 443, field="url"))


def test_the_connection_goes_to_the_address_that_was_looked_at_under_the_name_that_was_asked():
    resolve, asked = names(["127.0.0.1"], ["169.254.169.254"])
    server = Server()

    async def ask() -> bytes:
        async with server as port:
            return await got(Guard(private=True, resolve=resolve), f"http://hook.example:{port}/a?b#c")

    assert asyncio.run(ask()) == b"hello"
    assert asked == ["hook.example"]  # once: a second answer would have been another one
    assert server.seen[0].startswith(b"GET /a?b HTTP/1.1\r\nHost: hook.example:")
    assert b"cookie" not in server.seen[0].lower()


def test_the_second_address_is_taken_when_nobody_is_at_the_first():
    async def ask() -> bytes:
        async with Server() as port:
            return await got(
                Guard(private=True, resolve=names(["127.0.0.2", "127.0.0.1"])[0]), f"http://hook.example:{port}/"
            )

    assert asyncio.run(ask()) == b"hello"


def test_a_redirect_is_an_answer_and_nobody_follows_it():
    inner = Server()

    async def ask() -> int:
        async with inner as port:
            moved = f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{port}/\r\nContent-Length: 0\r\n\r\n".encode()
            async with Server(moved) as outer:
                guard = Guard(private=True)
                with pytest.raises(InvalidInput, match="302, and redirects are not followed"):
                    await got(guard, f"http://127.0.0.1:{outer}/")
                return await guard.post(f"http://127.0.0.1:{outer}/", b"{}", {}, field="url", wait_s=5)

    assert asyncio.run(ask()) == 302
    assert inner.seen == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + b"x" * 99999, "more than 100 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 99999, "more than 100 bytes"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", "did not answer: RemoteProtocolError"),
        (b"SSH-2.0-OpenSSH\r\n", "did not answer: RemoteProtocolError"),
        (b"", "did not answer: RemoteProtocolError"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404"),
    ],
    ids=["long", "endless", "long-headers", "not-http", "closed", "missing"],
)
def test_what_is_no_file_of_a_bounded_size_is_refused(answer: bytes, said: str):
    async def ask() -> None:
        async with Server(answer) as port:
            with pytest.raises(InvalidInput, match=said):
                await got(Guard(private=True), f"http://127.0.0.1:{port}/")

    asyncio.run(ask())


def test_a_server_that_does_not_finish_is_given_up():
    async def ask() -> None:
        async with Server(OK[:-2], hold=True) as port:
            with pytest.raises(InvalidInput, match=r"within 0\.2 s"):
                await got(Guard(private=True), f"http://127.0.0.1:{port}/", wait_s=0.2)

    asyncio.run(ask())


def test_nobody_there_is_said_so():
    async def ask() -> None:
        with nobody() as port, pytest.raises(InvalidInput, match="ConnectError"):
            await got(Guard(private=True), f"http://127.0.0.1:{port}/")

    asyncio.run(ask())


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(of a server that is called `name`, of a client that trusts it)."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, secret = folder / f"{name}.pem", folder / f"{name}.key"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem, secret)
    return server, ssl.create_default_context(cafile=str(pem))


@pytest.mark.parametrize(("called", "heard"), [("hook.example", True), ("other.example", False)])
def test_tls_is_held_against_the_name_and_not_the_address(tmp_path: Path, called: str, heard: bool):
    server, client = certificate(tmp_path, called)
    sni: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: sni.append(name)

    async def ask() -> bytes | None:
        async with Server(tls=server) as port:
            guard = Guard(private=True, resolve=names(["127.0.0.1"])[0], tls=client)
            try:
                return await got(guard, f"https://hook.example:{port}/")
            except InvalidInput:
                return None

    assert asyncio.run(ask()) == (b"hello" if heard else None)
    assert sni == ["hook.example"]


def test_the_settings_open_it():
    closed, opened = Guard.of(Settings()), Guard.of(Settings(private_urls=True, url_ports=(8443,)))
    with pytest.raises(InvalidInput):
        closed.check("http://127.0.0.1:8000/", field="url")
    assert opened.check("http://127.0.0.1:8000/", field="url").port == 8000
    only = Guard.of(Settings(url_ports=(8443,)))
    assert only.check("https://example.com:8443/", field="url").port == 8443
    with pytest.raises(InvalidInput, match="port 443"):
        only.check("https://example.com/", field="url")


def test_name_servers_that_hang_hold_no_thread_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()

    def hang(host: str, port: int, *_: Any, **more: Any) -> list[Any]:
        assert answers.wait(60)
        return [(None, None, None, "", ("192.0.2.1", port))]

    async def asked() -> list[Sequence[str]]:
        looks = [asyncio.create_task(system_resolve(f"{n}.example.org", 443)) for n in range(48)]
        await asyncio.sleep(0)  # they are asked
        try:
            await asyncio.wait_for(asyncio.to_thread(lambda: None), 30)
        finally:
            answers.set()
        return await asyncio.gather(*looks)

    monkeypatch.setattr("serve.guard.socket.getaddrinfo", hang)
    assert asyncio.run(asked()) == [["192.0.2.1"]] * 48
