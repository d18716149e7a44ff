"""The guard of every request to an address that somebody else chose: webhooks, pictures to be fetched.

Nothing behind our own walls is asked: the name is resolved here, every address of it has to be public, and the
connection goes to the address that was looked at, so a second answer of the name server changes nothing. TLS is held
against the name. No redirects, no proxies of the environment, no credentials, bounded in bytes and in time.
Source: OWASP, Server-Side Request Forgery Prevention Cheat Sheet; IANA registries of special-purpose addresses.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpcore
import httpx

from cluster.errors import InvalidInput
from cluster.settings import Settings

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) -> addresses. Raises OSError for a name that has none."""
MAX_URL_CHARS = 2000
_NAME = re.compile(r"(?!.*\.[0-9][0-9a-fx]*\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9-]{2,63}")
_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
"""A host of one's own network; one that begins with a digit might be an address in disguise."""
_NAMES = ThreadPoolExecutor(64, thread_name_prefix="names")
"""A name server that hangs holds one of these, and none of the threads in which everybody else waits for the ledger."""
PUBLIC_IPV6 = IPv6Network("2000::/3")
NOT_PUBLIC = (
    IPv4Network("168.63.129.16/32"),  # Azure's own services, at a public address
    IPv4Network("192.0.0.0/24"),  # protocols; Oracle's metadata
    IPv4Network("192.88.99.0/24"),  # relays of 6to4
    IPv6Network("2001::/23"),  # protocols; Teredo carries IPv4 addresses
    IPv6Network("2002::/16"),  # 6to4 carries IPv4 addresses
    IPv6Network("3fff::/20"),  # documentation
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    status: int
    media_type: str
    content: bytes


async def system_resolve(host: str, port: int) -> Sequence[str]:
    look = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_NAMES, look)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """`private` opens a closed network: plain http, any port, addresses of one's own network. `tls` None: the CAs
    that the system and certifi trust."""

    private: bool = False
    ports: tuple[int, ...] = (80, 443)
    resolve: Resolve = system_resolve
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, settings: Settings) -> Guard:
        return cls(private=settings.private_urls, ports=settings.url_ports)

    def check(self, text: str, *, field: str) -> httpx.URL:
        """What can be seen without asking anybody. Raises InvalidInput."""
        if len(text) > MAX_URL_CHARS or not text.isascii() or not text.isprintable() or set(text) & set(" \\"):
            raise InvalidInput(
                "the URL is too long, or holds what no URL holds", field=field, remedy="write it in ASCII, with %XX"
            )
        try:
            url = httpx.URL(text)
            host, port = url.raw_host.decode(), url.port
        except (httpx.InvalidURL, UnicodeError) as error:
            raise InvalidInput("that is no URL", field=field, remedy="write it as in https://example.com/x") from error
        if url.scheme not in (("https", "http") if self.private else ("https",)):
            raise InvalidInput(f"the URL begins with {url.scheme[:20] or 'nothing'}:", field=field, remedy="use https:")
        if "@" in re.split(r"[/?#]", text.partition("://")[2])[0]:
            raise InvalidInput("the URL holds credentials", field=field, remedy="leave them out")
        if port is None:
            port = 443 if url.scheme == "https" else 80
        if not 0 < port < 65536 or not (self.private or port in self.ports):
            allowed = " or ".join(map(str, self.ports))
            raise InvalidInput(f"port {port} is not allowed", field=field, remedy=f"use {allowed}")
        address = _literal(host)
        if address is not None:
            self._check_address(address, field)
        elif not (_NAME.fullmatch(host) or (self.private and _LABEL.fullmatch(host))):
            raise InvalidInput("the URL names no host of the internet", field=field, remedy="use a full domain name")
        return url.copy_with(fragment=None)

    async def get(self, text: str, *, field: str, most_bytes: int, wait_s: float) -> Fetched:
        """The bytes at a URL, if it answers 200. Raises InvalidInput."""
        found = await self._ask("GET", text, {}, None, field=field, most_bytes=most_bytes, wait_s=wait_s)
        if found.status != 200:
            more = ", and redirects are not followed" if 300 <= found.status < 400 else ""
            raise InvalidInput(f"the URL answered {found.status}{more}", field=field, remedy="give one that has it")
        return found

    async def post(self, text: str, content: bytes, headers: Mapping[str, str], *, field: str, wait_s: float) -> int:
        """The status of the answer, which is not read any further. Raises InvalidInput if there is none."""
        return (await self._ask("POST", text, headers, content, field=field, most_bytes=0, wait_s=wait_s)).status

    async def addresses(self, host: str, port: int, *, field: str) -> list[str]:
        """Where `host` may be asked. Raises InvalidInput alike for a name that nobody knows and one of our own."""
        try:
            found = [ip_address(text) for text in await self.resolve(host, port)]
        except (OSError, ValueError) as error:  # UnicodeError is a ValueError
            raise _nowhere(field) from error
        if not found:
            raise _nowhere(field)
        for address in found:
            self._check_address(address, field)
        return [str(address) for address in found]

    def _check_address(self, address: IPv4Address | IPv6Address, field: str) -> None:
        if not (is_public(address) or (self.private and is_of_a_network(address))):
            raise _nowhere(field)

    async def _ask(
        self,
        method: str,
        text: str,
        headers: Mapping[str, str],
        content: bytes | None,
        *,
        field: str,
        most_bytes: int,
        wait_s: float,
    ) -> Fetched:
        url = self.check(text, field=field)
        backend = _Pinned(self, field)
        named = {"Host": url.netloc.decode(), "User-Agent": "Reelfarm", "Accept-Encoding": "identity", **headers}
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        try:
            async with (
                asyncio.timeout(wait_s),
                httpcore.AsyncConnectionPool(ssl_context=self.tls or _trusted(), network_backend=backend) as pool,
                pool.stream(method, target, headers=list(named.items()), content=content) as response,
            ):
                told = {name.lower(): value for name, value in response.headers}
                body = await _read(response, most_bytes, field) if most_bytes and response.status == 200 else b""
                media_type = told.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
                return Fetched(status=response.status, media_type=media_type, content=body)
        except TimeoutError as error:
            raise InvalidInput(f"the URL did not answer within {wait_s:g} s", field=field) from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise InvalidInput(f"the URL did not answer: {type(error).__name__}", field=field) from error


class _Pinned(httpcore.AnyIOBackend):
    """Connects to addresses that the guard has looked at, and to nothing else."""

    def __init__(self, guard: Guard, field: str) -> None:
        self._guard, self._field = guard, field

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # as httpcore calls it
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        literal = _literal(host)
        found = [str(literal)] if literal else await self._guard.addresses(host, port, field=self._field)
        for address in found[:-1]:
            try:
                return await super().connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await super().connect_tcp(found[-1], port, timeout, local_address, socket_options)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether anybody on the internet may be meant; what carries an IPv4 address inside is not."""
    if isinstance(address, IPv6Address) and (address not in PUBLIC_IPV6 or address.scope_id):
        return False
    if any(address in network for network in NOT_PUBLIC if network.version == address.version):
        return False
    return address.is_global and not address.is_multicast


METADATA = ("168.63.129.16", "192.0.0.192", "fd00:ec2::254")
"""Where Azure, Oracle and, by IPv6, Amazon answer to their machines, beside the link-local addresses."""


def is_of_a_network(address: IPv4Address | IPv6Address) -> bool:
    """Of a closed network, this machine included; what clouds answer to the machines themselves is not."""
    plain = address.ipv4_mapped is None and not address.is_site_local if isinstance(address, IPv6Address) else True
    never = address.is_link_local or address.is_multicast or address.is_unspecified or str(address) in METADATA
    return plain and address.is_private and not never


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _nowhere(field: str) -> InvalidInput:
    return InvalidInput("the host of the URL has no public address", field=field, remedy="use one of the internet")


async def _read(response: httpcore.Response, most_bytes: int, field: str) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_stream():
        body += chunk
        if len(body) > most_bytes:
            raise InvalidInput(f"there are more than {most_bytes:,} bytes", field=field, remedy="give a smaller file")
    return bytes(body)


@cache
def _trusted() -> ssl.SSLContext:
    return httpcore.default_ssl_context()
