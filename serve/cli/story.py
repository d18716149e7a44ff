"""The event log of a job in words: `farm log`."""

from __future__ import annotations

import time
from datetime import datetime

from cluster.rates import usd
from serve.cli import rows
from serve.cli.wording import clean, dollars, short_id, short_worker
from serve.office import Office
from serve.rows import EventRow

POLL_S = 0.5
WORDS = {
    "job.created": "submitted",
    "job.cancel": "canceled by a person",
    "job.held": "put on hold: no new work is given out",
    "job.released": "released",
    "job.files_released": "its files are kept no longer",
    "job.summed": "over for long: what happened before is kept no longer",
    "job.ended": "over",
    "job.reopened": "open again",
    "task.created": "planned",
    "task.deps_met": "all its inputs are there: ready",
    "task.deps_reopened": "waits for its inputs again",
    "task.lease": "runs",
    "task.commit": "done",
    "task.cache_hit": "answered by an earlier run",
    "task.cached": "saved",
    "task.gate": "done, waits for a person",
    "task.cache_gate": "answered by an earlier run, waits for a person",
    "task.approve": "approved",
    "task.waive": "needs no approval any more",
    "task.reject": "rejected: another take with another seed",
    "task.retry_later": "failed, and will be tried again",
    "task.backoff_over": "ready again",
    "task.expire": "lost, and ready again",
    "task.interrupt": "interrupted, and ready again",
    "task.die": "dead",
    "task.hold": "put on hold",
    "task.release": "released: ready",
    "task.release_pending": "released: waits for its inputs",
    "task.cancel": "canceled",
    "task.eat": "accepted as done without output",
    "task.inputs_changed": "stale: older than its inputs",
    "task.reopen": "opened again: ready",
    "task.reopen_pending": "opened again: waits for its inputs",
    "task.no_fleet": "can run on no fleet",
    "task.free": "free: who was answering the same question gave up",
    "attempt.late_report": "a late report was booked, and changed nothing",
}


def tell(office: Office, job_id: str, *, after: int, follow: bool, as_json: bool) -> None:
    """Prints the events of a job that follow number `after`; with `follow` until the job is over."""
    day = ""
    while True:
        page = office.events(job_id, after=after)
        for event in page.data:
            after = event.seq
            if as_json:
                rows.write([event])
                continue
            at = datetime.fromisoformat(event.at).astimezone()
            if at.strftime("%Y-%m-%d") != day:
                day = at.strftime("%Y-%m-%d")
                print(f"{day}, {job_id}", flush=True)
            key = f"{clean(event.task)}: " if event.task else ""
            print(f"{event.seq:>6}  {at:%H:%M:%S}  {key}{sentence(event)}", flush=True)
        if page.has_more:
            continue
        if not follow or page.over:
            return
        time.sleep(POLL_S)


def sentence(event: EventRow) -> str:
    """What happened, in a few words."""
    data = event.plain()
    said = WORDS.get(event.event, clean(event.event.partition(".")[2].replace("_", " ")))
    match event.event:
        case "job.created":
            said += f': "{clean(str(data.get("title", "")), 120)}", {data.get("tier")}, show {clean(str(data["show"]))}'
        case "job.priority":
            said = f"priority {data.get('priority')}, tier {data.get('tier')}"
        case "task.created":
            said += f", {event.state}"
        case "task.lease":
            said += f" on {short_worker(clean(str(data.get('worker'))))}, epoch {event.epoch}"
        case "task.commit" if data.get("adopted"):
            said += ", by the receipt of an attempt that was given up"
        case "task.cache_hit":
            said += f", task {short_id(str(data.get('from_task')))}"
        case "task.cached":
            said += f" {dollars(usd(int(str(data.get('saved_nano', 0)))))} and {data.get('saved_s', 0):.1f} s of work"
        case "attempt.late_report":
            said += f" ({data.get('report')}, of an attempt that was {data.get('attempt')})"
        case _ if data.get("failure"):
            said += f" ({data['failure']})"
    return f"{said}: {clean(str(data['reason']), 300)}" if data.get("reason") else said
