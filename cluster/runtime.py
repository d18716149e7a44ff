"""Ray itself: a private instance that ends with its process, or one that runs already."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.errors import Unavailable

NAMESPACE = "reelfarm"


def prepare_environment() -> None:
    """Settings that Ray reads when it is imported. Token auth is on unless somebody chose otherwise."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a call after the end must not start a second Ray
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # a busy laptop takes more than Serve's 5 s
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "2")  # a dead proxy is replaced after three of them
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")


@contextlib.contextmanager
def private_ray(
    *, gpus: int, code_dir: Path, dashboard_port: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Ray on this machine, on loopback, ended when the block ends. `gpus` is what Ray shall count as accelerators;
    where there are none it pretends, so that pinning can be tried anywhere. Its dashboard takes part if it has a port.
    `environment` is set before it starts.

    Raises Unavailable when Ray does not come up.
    """
    imported_before = "ray" in sys.modules
    os.environ.update(environment or {})
    if "RAY_AUTH_TOKEN_PATH" in (environment or {}):
        os.environ.pop("RAY_AUTH_TOKEN", None)  # of another Ray; it would go before the file
    prepare_environment()
    import ray

    if ray.is_initialized():  # the caller's own Ray: used, and left running
        yield
        return
    if imported_before:
        _read_environment_again()
    _start(gpus=gpus, code_dir=code_dir, dashboard_port=dashboard_port)
    try:
        yield
    finally:
        ray.shutdown()


def draining_nodes() -> frozenset[str]:
    """Ids of nodes that will go away soon: a spot notice, a scale-in. Ray tells tasks and Serve of it, but no actor;
    the one private call of Ray that says so is what its own Serve, Data and Train ask."""
    import ray

    return frozenset(ray._private.state.state.get_draining_nodes())


def metrics_nodes_file() -> Path:
    """Where the Ray that this process has started writes down its nodes' agents, for Prometheus. Its dashboard does it,
    and nothing public says where the session is."""
    import ray

    node: Any = ray._private.worker._global_node
    return Path(node.get_session_dir_path()) / "prom_metrics_service_discovery.json"


def child_environment(code_dir: Path) -> dict[str, str]:
    """For a process that starts a Ray: it imports our code from `code_dir`, and jobs that are submitted to that Ray
    find the command `farm` beside the interpreter."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONPATH": _python_path(code_dir)}


def replica_drains() -> bool:
    """Whether this process is a replica of Ray Serve that was told to stop. It waits for the requests that run, so one
    that streams has to know; nothing public tells it."""
    import ray

    worker = ray._private.worker.global_worker
    replica = getattr(worker.actors.get(worker.actor_id), "_replica_impl", None)
    return bool(getattr(replica, "_shutting_down", False))


def _read_environment_again() -> None:
    """Ray's core reads how to authenticate when it is imported, its servers when they start: a program that imported
    Ray before it asked for a farm would be refused by its own. What Ray's own tests do, as nothing public does it."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _start(*, gpus: int, code_dir: Path, dashboard_port: int | None) -> None:
    """Ray gives its node 30 s to start, which a busy laptop may miss once."""
    import ray

    for last_try in (False, True):
        try:
            with _any_agent_port():
                ray.init(
                    address="local",  # a Ray that somebody else runs on this machine is not ours
                    num_cpus=os.cpu_count(),
                    num_gpus=gpus,
                    namespace=NAMESPACE,
                    include_dashboard=dashboard_port is not None,
                    dashboard_host="127.0.0.1",
                    dashboard_port=dashboard_port,
                    log_to_driver=False,
                    configure_logging=True,
                    logging_level=logging.ERROR,
                    object_store_memory=256 * 2**20,
                    runtime_env={"env_vars": {"PYTHONPATH": _python_path(code_dir), "PYTHONUNBUFFERED": "1"}},
                    _node_ip_address="127.0.0.1",
                )
            return
        except Exception as error:  # Ray raises a bare Exception when a node is too slow to start
            ray.shutdown()
            if last_try:
                raise Unavailable(
                    f"Ray does not start: {error}", remedy="look at its logs, and for memory and disk space"
                ) from error


@contextlib.contextmanager
def _any_agent_port() -> Iterator[None]:
    """Ray's agent, which takes jobs, listens at a port that is free. By itself it wants the same one on every machine,
    and beside another Ray it takes no jobs; nothing public lets `ray.init` choose."""
    from ray._private import parameter

    module: Any = parameter
    plain = module.RayParams
    module.RayParams = partial(plain, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        module.RayParams = plain


def _python_path(code_dir: Path) -> str:
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return os.pathsep.join(dict.fromkeys([str(code_dir), *inherited]))
