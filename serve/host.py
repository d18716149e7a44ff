"""The process of a standing farm (`python -m serve.host`; `farm up` starts it): Ray, the supervisor and HTTP, from the
first to the last. It says in FARM_HOME/up.json how far it is, and drains on SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import farm_lock, logs
from cluster import settings as settings_module
from cluster.errors import FarmError, InvalidSettings, Unavailable
from cluster.ledger.keys import KeySpec, Scope
from cluster.ledger.ledger import Ledger
from cluster.logs import say
from cluster.runtime import metrics_nodes_file, private_ray
from cluster.settings import Settings
from cluster.store.opening import open_store
from serve import local_s3, prometheus, up
from serve.cli.ending import Ending
from serve.local import CODE_DIR, accelerators_here
from serve.up import Up

log = logging.getLogger(__name__)
LOOK_S = 0.25
DRAIN_S = 25.0
STREAMS_S = 3.0
"""Streams see in about a second that the farm ends, and end: Serve kills its proxy without waiting for them."""
OWN_PORTS = (20_000, 30_000)
"""Below what Linux (32768) and others (49152) give to who asks for any port, beside what Ray takes for itself."""
METRICS_KEY = "metrics-key"
RAY_TOKEN = "ray-token"  # noqa: S105  # the name of a file


def main() -> None:
    asked = argparse.ArgumentParser(prog="serve.host")
    asked.add_argument("--gpus", type=int)
    asked.add_argument("--metrics", action="store_true")
    asked.add_argument("--s3", action="store_true")
    told_to = asked.parse_args()
    gpus: int | None = told_to.gpus
    logs.set_up()
    settings = settings_module.load()
    ending = Ending()
    told = threading.Event()
    ending.on_stop = told.set
    ending.adopt()
    try:
        with farm_lock.held(settings.home):
            num_gpus = accelerators_here() if gpus is None else gpus
            _stand(settings, num_gpus, ending, told, metrics=told_to.metrics, s3=told_to.s3)
    except KeyboardInterrupt:
        say(log, "The farm was ended while it started.", action="farm.ended")
    finally:
        ending.sweep()


def _stand(settings: Settings, gpus: int, ending: Ending, told: threading.Event, *, metrics: bool, s3: bool) -> None:
    home = settings.home
    now = Up(pid=os.getpid(), phase="starting Ray")
    up.say(home, now)
    try:
        token_file = _secret(home / RAY_TOKEN, secrets.token_hex(32))
        environment = {
            "RAY_AUTH_TOKEN_PATH": str(token_file),
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.listener.callback",
        }
        key_file = _key(settings, home / up.KEY, "farm up", *Scope)
        port_is_set = "http_port" in settings.model_fields_set
        _free_port(settings.http_port, only=port_is_set)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_store(settings, now, s3=s3))
            port = _free_port(settings.http_port, only=port_is_set)  # only now: S3 takes ports, too
            dashboard_port = _free_port(settings.dashboard_port)
            stack.enter_context(
                private_ray(gpus=gpus, code_dir=CODE_DIR, dashboard_port=dashboard_port, environment=environment)
            )
            now = replace(
                now, phase="starting HTTP", key_file=str(key_file), ray_token_file=str(token_file),
                dashboard=f"http://127.0.0.1:{dashboard_port}",
            )  # fmt: skip
            up.say(home, now)
            with _http(settings, port) as supervisor, contextlib.ExitStack() as beside:
                now = replace(now, phase="loading models", url=up.url_of(settings.http_host, port))
                if metrics:
                    now = replace(now, prometheus=beside.enter_context(_prometheus(settings, port)))
                up.say(home, now)
                ending.watch()  # Ray has put its own handlers over ours
                ending.settled = True  # from here on a signal is an order to drain
                _serve_until_told(settings, supervisor, now, told)
                up.say(home, replace(now, phase=up.ENDING))
                ends_s = time.monotonic() + STREAMS_S
                with contextlib.suppress(Exception):  # it ends with Ray in any case
                    _ask(supervisor.drain.remote(DRAIN_S), DRAIN_S + 10.0)
                time.sleep(max(0.0, ends_s - time.monotonic()))
    except FarmError as error:
        up.say(home, replace(now, failed=error.line()))
        say(log, "The farm cannot stand.", action="farm.failed", level=logging.ERROR, why=error.line())
    except Exception as error:
        said = next(iter(str(error).splitlines()), "")
        up.say(home, replace(now, failed=f"something unforeseen happened ({type(error).__name__}: {said})"))
        log.exception("The farm cannot stand.")


def _serve_until_told(settings: Settings, supervisor: Any, now: Up, told: threading.Event) -> None:
    """Says that the farm is ready once its first workers are there, or once it is known that they cannot be."""
    ready = False
    while not told.wait(LOOK_S if not ready else 5.0):
        try:
            standing = _ask(supervisor.standing.remote(), 10.0)
        except Unavailable:
            continue  # it is being started again
        if not ready and standing.up and not standing.loading:
            ready = True
            up.say(settings.home, replace(now, phase="", trouble=standing.broken))
            say(log, "The farm is ready.", action="farm.ready", url=now.url, workers=standing.workers)
        elif not ready and standing.broken and not standing.up:
            raise Unavailable(standing.broken[0])


@contextlib.contextmanager
def _store(settings: Settings, now: Up, *, s3: bool) -> Iterator[None]:
    """The farm's own S3 server for the block, if it has one or is to have one. A store that cannot be used is found out
    here. Raises StoreUnavailable, InvalidSettings, Unavailable."""
    with contextlib.ExitStack() as stack:
        if s3 or local_s3.has_one(settings):
            up.say(settings.home, replace(now, phase="starting S3"))
            stack.enter_context(local_s3.standing(settings))
            up.say(settings.home, now)
        open_store(settings).capabilities()
        yield


@contextlib.contextmanager
def _http(settings: Settings, port: int) -> Iterator[Any]:
    """HTTP on `port` for the block; the handle of the supervisor. What runs when it ends is finished."""
    from ray import serve as ray_serve

    from serve.app import NAME, built, supervisor

    ray_serve.start(
        proxy_location="HeadOnly",
        http_options={"host": settings.http_host, "port": port, "keep_alive_timeout_s": 75},
        logging_config={"enable_access_log": False, "encoding": "JSON"},
    )
    try:
        handle = supervisor(settings)
        ray_serve.run(built(settings), name=NAME, route_prefix="/")
        yield handle
    finally:
        ray_serve.shutdown()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _prometheus(settings: Settings, port: int) -> Iterator[str]:
    """Prometheus on this farm and this Ray, with a key that may read metrics; its URL. Raises Unavailable."""
    key_file = _key(settings, settings.home / METRICS_KEY, "prometheus", Scope.OPERATE)
    told = prometheus.config(
        target=f"127.0.0.1:{port}", key_file=key_file, nodes_file=metrics_nodes_file(), every_s=settings.scrape_s
    )
    with prometheus.running(settings.home, _free_port(settings.prometheus_port), told) as url:
        yield url


def _ask(reference: Any, timeout_s: float) -> Any:
    import ray

    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.RayError as error:
        raise Unavailable(f"the supervisor does not answer: {type(error).__name__}") from error


def _key(settings: Settings, file: Path, name: str, *scopes: Scope) -> Path:
    """The file of a key of the farm's own tenant; made anew if it opens nothing any more."""
    ledger = Ledger(settings.ledger)
    try:
        if file.exists() and ledger.authenticate(file.read_text().strip()) is not None:
            return file
        _, secret = ledger.create_key(KeySpec(tenant=settings.tenant, name=name, scopes=scopes))
        file.unlink(missing_ok=True)
        return _secret(file, secret)
    finally:
        ledger.close()


def _secret(file: Path, text: str) -> Path:
    """A file that its owner alone may read; one that is there stays as it is."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as opened:
            opened.write(text)
    return file


def _free_port(asked: int, *, only: bool = False) -> int:
    """`asked` if it is one and free, else any that is. It is bound much later: so rather one that no system gives to
    somebody else meanwhile. Raises InvalidSettings if it has to be that one, and it is not free."""
    for port in (*filter(None, [asked]), *random.sample(range(*OWN_PORTS), 20), 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if only and port == asked:
                    raise InvalidSettings(
                        f"port {port} is taken",
                        field="FARM_HTTP_PORT",
                        remedy="use another one, or 0 for any that is free",
                    ) from error
                continue
            return int(probe.getsockname()[1])
    raise Unavailable("no port is free on this machine")


if __name__ == "__main__":
    main()
