"""Requests that nobody means well with, byte by byte, and what each may be answered: a corpus, asked of any server."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

MB = 1 << 20
PNG = b"\x89PNG\r\n\x1a\n"
BOAT = b'{"prompt": "a red boat crosses the sea"'
CLOSED = 0
"""Instead of a status: the connection ends without an answer, which is fair where there was no request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attack:
    """`pieces(key)` are written one after another. `fair`: statuses of the answer, each a typed one in the envelope."""

    name: str
    pieces: Callable[[str], Iterable[bytes]]
    fair: frozenset[int]
    half_close: bool = False


def head(method: str, path: str, key: str, *lines: str | bytes) -> bytes:
    first = [f"{method} {path} HTTP/1.1", "Host: farm", *([f"Authorization: Bearer {key}"] if key else [])]
    rest = [line if isinstance(line, bytes) else line.encode() for line in lines]
    return b"\r\n".join([*(line.encode() for line in first), *rest, b"", b""])


def post(
    name: str,
    body: bytes,
    fair: set[int],
    *lines: str | bytes,
    path: str = "/v1/videos",
    kind: str = "application/json",
) -> Attack:
    """A whole body with its right length."""

    def pieces(key: str) -> Iterator[bytes]:
        yield head("POST", path, key, f"Content-Type: {kind}", f"Content-Length: {len(body)}", *lines) + body

    return Attack(name=name, pieces=pieces, fair=frozenset(fair))


def raw(name: str, fair: set[int], *pieces: bytes, half_close: bool = False) -> Attack:
    """KEY in the pieces is the key."""
    return Attack(
        name=name,
        pieces=lambda key: [piece.replace(b"KEY", key.encode()) for piece in pieces],
        fair=frozenset(fair),
        half_close=half_close,
    )


def get(name: str, fair: set[int], path: str, *lines: str | bytes) -> Attack:
    return Attack(name=name, pieces=lambda key: [head("GET", path, key, *lines)], fair=frozenset(fair))


def endless(
    name: str,
    fair: set[int],
    *lines: str,
    num_mb: int = 100,
    chunked: bool,
    path: str = "/v1/videos",
    keyed: bool = True,
) -> Attack:
    size = ["Transfer-Encoding: chunked"] if chunked else [f"Content-Length: {num_mb * MB}"]

    def pieces(key: str) -> Iterator[bytes]:
        yield head("POST", path, key if keyed else "", *lines, *size)
        piece = b"x" * MB
        for _ in range(num_mb):
            yield b"%x\r\n%s\r\n" % (MB, piece) if chunked else piece
        if chunked:
            yield b"0\r\n\r\n"

    return Attack(name=name, pieces=pieces, fair=frozenset(fair))


def form(*parts: tuple[bytes, bytes], end: bytes = b"--x--\r\n") -> bytes:
    """Of (headers of the part, value)."""
    return b"".join(b"--x\r\n" + headers + b"\r\n\r\n" + value + b"\r\n" for headers, value in parts) + end


def field(name: bytes, more: bytes = b"") -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"' + more


JSON, FORM = "Content-Type: application/json", "multipart/form-data; boundary=x"
DEEP = 100_000
BIG = [  # 100 MB each
    endless("100-mb", {413}, JSON, chunked=False),
    endless("100-mb-chunked", {413}, JSON, chunked=True),
    endless("100-mb-form", {413}, f"Content-Type: {FORM}", chunked=False),
    endless("100-mb-form-chunked", {400, 413}, f"Content-Type: {FORM}", chunked=True),
    endless("100-mb-without-key", {401, 413}, JSON, chunked=True, keyed=False),
    endless("100-mb-to-nowhere", {404, 413}, JSON, chunked=True, path="/v1/none"),
    endless("100-mb-to-who-reads-no-body", {404, 413}, JSON, chunked=True, path="/v1/videos/video_x/cancel"),
    Attack(
        name="100-mb-of-headers",
        pieces=lambda key: (
            head("GET", "/v1/models", key)[:-2],
            *(b"x-%d: %s\r\n" % (n, b"a" * MB) for n in range(100)),
            b"\r\n",
        ),
        fair=frozenset({431}),
    ),
    Attack(
        name="100-mb-in-one-header",
        pieces=lambda key: (
            head("GET", "/v1/models", key)[:-2] + b"x: ",
            *(b"a" * MB for _ in range(100)),
            b"\r\n\r\n",
        ),
        fair=frozenset({431}),
    ),
    Attack(
        name="100-mb-of-path",
        pieces=lambda key: (b"GET /", *(b"a" * MB for _ in range(100)), b" HTTP/1.1\r\n\r\n"),
        fair=frozenset({431}),
    ),
    Attack(
        name="100-mb-of-part-headers",
        pieces=lambda key: (
            head("POST", "/v1/videos", key, f"Content-Type: {FORM}", f"Content-Length: {100 * MB + 9}")
            + b"--x\r\nX-A: ",
            *(b"a" * MB for _ in range(100)),
        ),
        fair=frozenset({400, 413}),
    ),
]
BODIES = [
    post("deep-lists", b"[" * DEEP + b"]" * DEEP, {400}),
    post("deep-objects", b'{"a":' * DEEP + b"1" + b"}" * DEEP, {400}),
    post("deep-in-a-field", BOAT + b', "input_reference": ' + b"[" * DEEP + b"]" * DEEP + b"}", {400}),
    post("deep-metadata", BOAT + b', "metadata": ' + b'{"a":' * 500 + b"1" + b"}" * 501, {400}),
    post("huge-float", BOAT + b', "seconds": 1e400}', {422}),
    post("huge-float-seed", BOAT + b', "seed": 1e400}', {422}),
    post("5000-digits", BOAT + b', "seed": ' + b"1" * 5000 + b"}", {400}),
    post("4000-digits", BOAT + b', "seed": ' + b"1" * 4000 + b"}", {422}),
    post("5000-digits-of-text", BOAT + b', "seed": "' + b"1" * 5000 + b'"}', {422}),
    post("nan", BOAT + b', "seconds": NaN}', {400}),
    post("minus-zero", BOAT + b', "seconds": -0}', {422}),
    post("minus-infinity", BOAT + b', "seconds": -Infinity}', {400}),
    post("tiny-float", BOAT + b', "seconds": 1e-400}', {422}),
    post("nul", BOAT[:-1] + b'\\u0000"}', {422}),
    post("nul-byte", BOAT[:-1] + b'\x00"}', {400}),
    post("nul-in-a-name", BOAT + b', "a\\u0000b": 1}', {422}),
    post("lone-surrogate", BOAT[:-1] + b'\\ud800"}', {400}),
    post("latin-1", BOAT[:-1] + b'\xe9"}', {400}),
    post("utf-7", b"+AHs-}", {400}, kind="application/json; charset=utf-7"),
    post("utf-16-odd", b"\xff\xfe{\x00}", {400}, kind="application/json; charset=utf-16"),
    post("no-such-charset", b"{}", {422}, kind="application/json; charset=\xff".encode("latin-1").decode("latin-1")),
    post("twice", BOAT + b', "prompt": "a blue fish drifts on a coral reef"}', {400}),
    post("two-documents", BOAT + b"}{}", {400}),
    post("proto", BOAT + b', "__proto__": {"a": 1}, "constructor": 1}', {422}),
    post("traversal-model", BOAT + b', "model": "../../../etc/passwd"}', {422}),
    post("traversal-size", BOAT + b', "size": "../512x512"}', {422}),
    post("huge-size", BOAT + b', "size": "99999x99999"}', {422}),
    post("a-megabyte-of-prompt", b'{"prompt": "' + b"boat " * 200_000 + b'"}', {422}),
    post(
        "a-megabyte-of-metadata",
        BOAT + b', "metadata": {' + b",".join(b'"k%d": "v"' % n for n in range(60_000)) + b"}}",
        {422},
    ),
    post("gzip-bomb", gzip.compress(b" " * 100 * MB), {400}, "Content-Encoding: gzip"),
    post("deflate", b"x" * 100, {400}, "Content-Encoding: deflate"),
    post("xml-entities", b'<!DOCTYPE a [<!ENTITY b "b">]><a>&b;</a>', {400}, kind="text/xml"),
    post("no-boundary", form((field(b"prompt"), b"boat")), {400}, kind="multipart/form-data"),
    post("another-boundary", form((field(b"prompt"), b"boat")), {400}, kind="multipart/form-data; boundary=y"),
    post(
        "long-boundary", form((field(b"prompt"), b"boat")), {400}, kind="multipart/form-data; boundary=" + "y" * 10_000
    ),
    post("10000-parts", form(*[(field(b"a"), b"1")] * 10_000), {400}, kind=FORM),
    post("10000-files", form(*[(field(b"a", b'; filename="b"'), b"1")] * 10_000), {400}, kind=FORM),
    post("huge-field-name", form((field(b"a" * MB), b"1")), {400}, kind=FORM),
    post("huge-field-value", form((field(b"prompt"), b"a" * MB)), {400}, kind=FORM),
    post("long-part-header", form((field(b"prompt") + b"\r\nX-A: " + b"a" * 200_000, b"1")), {400}, kind=FORM),
    post("many-part-headers", form((field(b"prompt") + b"\r\nX-A: a" * 20_000, b"1")), {400}, kind=FORM),
    post("part-without-name", form((b"Content-Disposition: form-data", b"1")), {400}, kind=FORM),
    post("part-without-headers", b"--x\r\n\r\n\r\nboat\r\n--x--\r\n", {400}, kind=FORM),
    post("form-cut-off", form((field(b"prompt"), b"boat"), end=b""), {400, 422}, kind=FORM),
    post(
        "traversal-file-name",
        form((field(b"input_reference", b'; filename="../../../etc/passwd"'), PNG)),
        {422},
        kind=FORM,
    ),
    post("nul-file-name", form((field(b"input_reference", b'; filename="a\x00b"'), PNG)), {400, 422}, kind=FORM),
    post("nul-field-name", form((field(b"a\x00b"), b"1")), {400, 422}, kind=FORM),
    post("no-utf-8-in-a-form", form((field(b"prompt"), b"\xff\xfe")), {400, 422}, kind=FORM),
    post("bad-charset-of-a-form", form((field(b"_charset_"), b"utf-99")), {422}, kind=FORM + "; charset=utf-99"),
    post("brackets", b"a[b][c][d][e][f]=1", {400}, kind="application/x-www-form-urlencoded"),
    post("percent", b"%ff%00=%zz&" * 150, {400, 422}, kind="application/x-www-form-urlencoded"),
    post("10000-pairs", b"a=1&" * 10_000, {400}, kind="application/x-www-form-urlencoded"),
]
HEADERS = [
    get("16-kb-header", {200}, "/v1/models", "X-A: " + "a" * (16 << 10)),
    get("70-kb-header", {431}, "/v1/models", "X-A: " + "a" * 70_000),
    get("5000-headers", {431}, "/v1/models", *["X-A: aaaaaaaaaaaaaaaaaaaa"] * 5000),
    get("60-kb-path", {404}, "/v1/videos/" + "a" * 60_000),
    get("70-kb-path", {400, 431}, "/v1/videos/" + "a" * 70_000),
    get("60-kb-query", {422}, "/v1/videos?limit=" + "9" * 60_000),
    get("traversal", {404}, "/v1/videos/../../../etc/passwd"),
    get("traversal-encoded", {404}, "/v1/videos/..%2f..%2f..%2fetc%2fpasswd/content"),
    get("traversal-of-a-model", {404}, "/v1/models/../../../../etc/passwd"),
    get("nul-in-the-path", {404}, "/v1/videos/a%00b"),
    get("no-utf-8-in-the-path", {404}, "/v1/videos/%ff%fe"),
    get("no-utf-8-in-the-query", {404, 422}, "/v1/videos?after=%ff"),
    get("limit-twice", {422}, "/v1/videos?limit=1&limit=x"),
    get("bad-request-id", {200}, "/v1/models", b"X-Request-Id: \xff\xfe"),
    get("long-request-id", {200}, "/v1/models", "X-Request-Id: " + "a" * 20_000),
    get(
        "orders-to-the-proxy",
        {200},
        "/v1/models",
        "X-Request-Timeout-Seconds: 0.0001",
        b"serve_multiplexed_model_id: \xff",
        b"Serve-Multiplexed-Model-Id: \xff",
        b"X-Session-Id: \xff",
        b"X-Serve-Router-A: \xff",
    ),
    raw("no-ascii-key", {401}, b"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer \xff\xfe\r\n\r\n"),
    raw("no-bearer", {401}, b"GET /v1/models HTTP/1.1\r\nAuthorization: Basic KEY\r\n\r\n"),
    get("bad-range", {404}, "/v1/videos/video_x/content", "Range: bytes=9-3,-,x-y," + "0-1," * 5000),
    get("long-project", {422}, "/v1/videos", "OpenAI-Project: " + "../" * 100),
    post("bad-idempotency-key", BOAT + b"}", {400}, "Idempotency-Key: ../../etc/passwd \x01".replace("\x01", "\t.")),
    post("expect-something", BOAT + b', "seed": -1}', {422}, "Expect: 200-continue"),
    get("upgrade", {200}, "/v1/models", "Connection: Upgrade", "Upgrade: h2c"),
    get(
        "websocket",
        {200},
        "/v1/models",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ),
]
LENGTH = b"POST /v1/videos HTTP/1.1\r\nAuthorization: Bearer KEY\r\nContent-Length: "
CHUNKED = b"POST /v1/videos HTTP/1.1\r\nAuthorization: Bearer KEY\r\nTransfer-Encoding: chunked\r\n\r\n"
WIRE = [
    raw("no-http", {400, CLOSED}, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    raw("garbage", {400, CLOSED}, b"\x00\xff" * 500 + b"\r\n\r\n"),
    raw("http-0.9", {400, 404, CLOSED}, b"GET /\r\n\r\n", half_close=True),
    raw("http-2", {400, CLOSED}, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    raw("http-9", {400, 404, CLOSED}, b"GET / HTTP/9.9\r\nHost: x\r\n\r\n"),
    raw("no-such-method", {400}, b"BREW /v1/videos HTTP/1.1\r\nHost: x\r\n\r\n"),
    raw("trace", {405}, b"TRACE /v1/videos HTTP/1.1\r\nHost: x\r\n\r\n"),
    raw("connect", {400, 404, 405, CLOSED}, b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n"),
    raw("star", {400, 404, 405}, b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"),
    raw("absolute", {401}, b"GET http://169.254.169.254/v1/models HTTP/1.1\r\nHost: x\r\n\r\n"),
    raw("length-twice", {400}, LENGTH + b"2\r\nContent-Length: 3\r\n\r\n{}"),
    raw("length-and-chunks", {400}, LENGTH + b"2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    raw("length-below-zero", {400}, LENGTH + b"-1\r\n\r\n"),
    raw("length-with-a-sign", {400}, LENGTH + b"+2\r\n\r\n{}"),
    raw("length-of-40-digits", {400, 413}, LENGTH + b"" + b"9" * 40 + b"\r\n\r\n"),
    raw("length-of-18-digits", {413}, LENGTH + b"" + b"9" * 18 + b"\r\n\r\n"),
    raw("length-too-short", {400}, LENGTH + b"9\r\n\r\n" + BOAT + b"}"),
    raw("length-too-long", {400, 408, CLOSED}, LENGTH + b"99\r\n\r\n{}", half_close=True),
    raw("chunk-of-no-number", {400}, CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"),
    raw("chunk-below-zero", {400}, CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n"),
    raw("chunk-beyond-64-bits", {400}, CHUNKED + b"" + b"F" * 17 + b"\r\n"),
    raw("chunks-twice", {400}, b"POST /v1/videos HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    raw("gzip-transfer", {400, 401}, b"POST /v1/videos HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    raw("folded-header", {400, 401}, b"GET /v1/models HTTP/1.1\r\nX-A: a\r\n b\r\n\r\n"),
    raw("space-before-colon", {400}, b"GET /v1/models HTTP/1.1\r\nX-A : a\r\n\r\n"),
    raw("nul-in-a-header", {400}, b"GET /v1/models HTTP/1.1\r\nX-A: a\x00b\r\n\r\n"),
    raw("bare-cr", {400}, b"GET /v1/models HTTP/1.1\r\nX-A: a\rX-B: b\r\n\r\n"),
    raw("closed-at-once", {CLOSED}, b"", half_close=True),
]  # fmt: skip
CORPUS = [*BODIES, *HEADERS, *WIRE]
