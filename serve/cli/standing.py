"""`farm up` and `farm down`: a farm that stands on this machine and answers HTTP."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on one line.")]
Gpus = Annotated[int | None, typer.Option(metavar="N", min=0, help="Accelerators; by default those that are here.")]
OwnS3 = Annotated[bool, typer.Option("--s3", help="Keep all bytes on an S3 server of its own: SeaweedFS, on loopback.")]
Now = Annotated[bool, typer.Option("--now", help="Do not drain: what is drawn goes on from its last checkpoint.")]
Metrics = Annotated[bool, typer.Option("--metrics", help="With a Prometheus beside it, which scrapes it.")]
PANEL = "Run a farm"

app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def up(gpus: Gpus = None, metrics: Metrics = False, s3: OwnS3 = False, as_json: AsJson = False) -> None:
    """Start a farm that stays: workers, HTTP, dashboard. Returns when it is ready."""
    from cluster import settings as settings_module
    from cluster.errors import IllegalMove
    from cluster.store.opening import place_of
    from serve import local_s3, prometheus
    from serve import up as farms

    settings = settings_module.load()
    if metrics:
        prometheus.program()
    if s3:
        local_s3.check(settings)
    found = farms.here(settings)
    if found is None or not found.ready:
        arguments = [name for name, asked in (("--metrics", metrics), ("--s3", s3)) if asked]
        arguments += [] if gpus is None else [f"--gpus={gpus}"]
        found = farms.start(settings, arguments, lambda phase: _tell(phase))
    if metrics and not found.prometheus:
        raise IllegalMove(
            "the farm that is up has no Prometheus", field="--metrics", remedy="farm down, then farm up --metrics"
        )
    place = place_of(settings)
    if as_json:
        named = {"url": found.url, "key": found.key, "dashboard": found.dashboard, "prometheus": found.prometheus}
        named |= {"store": place.name if place is not None else str(settings.store_dir)}
        typer.echo(json.dumps(named | {"pid": found.pid, "trouble": list(found.trouble)}))
        return
    for line in found.trouble:
        typer.echo(f"farm: {line}", err=True)
    typer.echo(f"The farm is up (pid {found.pid}); `farm down` ends it.\n")
    typer.echo(f"  HTTP       {found.url}/v1          FARM_URL or OPENAI_BASE_URL")
    typer.echo(f"  key        {found.key}")
    typer.echo(f"             also in {found.key_file}; `farm keys add` makes more")
    typer.echo(f"  dashboard  {found.dashboard}    its token is in {found.ray_token_file}")
    if place is not None:
        typer.echo(f"  store      {place.name}" + (f"    its keys are in {place.keys}" if place.keys else ""))
    if found.prometheus:
        typer.echo(f"  metrics    {found.prometheus}    Prometheus; its data is in {settings.home / 'prometheus'}")


@app.command(rich_help_panel=PANEL)
def down(now: Now = False, as_json: AsJson = False) -> None:
    """Drain the farm and end it. What was accepted goes on at the next `farm up`."""
    from cluster import settings as settings_module
    from cluster.errors import NotFound
    from serve import up as farms

    settings = settings_module.load()
    found = farms.here(settings)
    if found is None:
        raise NotFound("no farm is up here", field="FARM_HOME", remedy="`farm up` starts one")
    farms.stop(settings, found, at_once=now, on_late=lambda: _tell("what is drawn is saved first"))
    typer.echo(json.dumps({"down": True, "pid": found.pid}) if as_json else "The farm is down.")


def _tell(phase: str) -> None:
    print(f"farm: {phase}", file=sys.stderr, flush=True)
