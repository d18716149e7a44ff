"""A real Prometheus beside the farm (`farm up --metrics`), from `deploy/prometheus`, on loopback. It ends with it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from cluster import disk
from cluster.errors import Unavailable

FILES = Path(__file__).resolve().parents[1] / "deploy" / "prometheus"
KEPT = "15d"
START_S = 60.0
END_S = 15.0
LOOK_S = 0.1


def program() -> str:
    """Where it is installed. Raises Unavailable."""
    found = shutil.which("prometheus", path=Path(sys.executable).parent) or shutil.which("prometheus")
    if found is None:
        raise Unavailable(
            "Prometheus is not installed here", field="--metrics", remedy="apt install prometheus, or leave it out"
        )
    if not (FILES / "prometheus.yml").is_file():
        raise Unavailable(
            "deploy/prometheus is not beside this installation",
            field="--metrics",
            remedy="run the farm from its checkout",
        )
    return found


def config(*, target: str, key_file: Path, nodes_file: Path, every_s: float) -> dict[str, Any]:
    """The configuration of `deploy/prometheus` for the farm at `target` (host:port). `nodes_file` is Ray's."""
    told: dict[str, Any] = yaml.safe_load((FILES / "prometheus.yml").read_text(encoding="utf-8"))
    every = f"{round(every_s * 1000)}ms"
    told["global"] = {"scrape_interval": every, "evaluation_interval": every}
    told["rule_files"] = [str(FILES / "alerts.yml")]
    farm, ray = told["scrape_configs"]
    farm["authorization"]["credentials_file"] = str(key_file)
    farm["static_configs"] = [{"targets": [target]}]
    ray["file_sd_configs"] = [{"files": [str(nodes_file)], "refresh_interval": every}]
    return told


@contextlib.contextmanager
def running(home: Path, port: int, told: dict[str, Any]) -> Iterator[str]:
    """Prometheus with this configuration for the block, its data under `home`; its URL. Raises Unavailable."""
    folder = home / "prometheus"
    folder.mkdir(parents=True, exist_ok=True)
    file, url = folder / "prometheus.yml", f"http://127.0.0.1:{port}"
    with disk.whole_file(file) as whole:
        whole.write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    with (folder / "prometheus.log").open("ab") as log:
        process = subprocess.Popen(
            [
                program(),
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--storage.tsdb.retention.time={KEPT}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _wait_until_ready(process, url, folder)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, folder: Path) -> None:
    ends_s = time.monotonic() + START_S
    while time.monotonic() < ends_s and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/-/ready", timeout=2.0).status_code == httpx.codes.OK:
                return
        time.sleep(LOOK_S)
    raise Unavailable("Prometheus does not start", field="--metrics", remedy=f"look at {folder / 'prometheus.log'}")
