"""How the command line says things: names of tasks, seconds, dollars, and text that cannot steer a terminal. Pure."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from typing import TYPE_CHECKING

from actors.contract import STORE_AWAY
from cluster.errors import InvalidInput
from cluster.states import State

if TYPE_CHECKING:
    from serve.watch import TaskView

TAKE_KEY = re.compile(r"^(?P<shot>.+)\.t(?P<take>\d+)$")
NAMES = {"expand": "shot list", "image": "still"}
PURPOSES = {
    "script": "title, scenes, shots, narration",
    "expand": "one task for each shot",
    "conform": "joins the shots",
    "publish": "names the film, writes its manifest",
}
STAGES = {
    "": "starting",
    "starting": "starting",
    "encode": "reading",
    "denoise": "drawing",
    "decode": "decoding",
    "script": "writing",
    "conform": "joining",
    "upload": "saving",
}
STATES = {
    State.PENDING: "waiting",
    State.READY: "next",
    State.RUNNING: "running",
    State.BACKOFF: "retrying",
    State.SUSPENDED: "on hold",
    State.IN_REVIEW: "in review",
    State.SUCCEEDED: "done",
    State.STALE: "stale",
    State.CANCELED: "stopped",
    State.DEAD: "failed",
    State.EATEN: "accepted",
    State.NOT_COMPATIBLE: "no worker",
}
LOADING = {
    "writer": "the writer is loading",
    "render": "the video model is loading",
    "finish": "the finish worker is starting",
}
STEERING = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")


def clean(text: str, longest: int | None = None) -> str:
    """`text` on one line; what could move a cursor, change a colour or turn the reading direction is replaced."""
    line = " ".join(text.split())
    safe = "".join(
        "\N{REPLACEMENT CHARACTER}" if char in STEERING or unicodedata.category(char) in {"Cc", "Cs"} else char
        for char in line
    )
    return safe if longest is None or len(safe) <= longest else safe[: longest - 1].rstrip() + "…"


def utf8(text: str, field: str) -> str:
    """The text, if the terminal sent UTF-8. Raises InvalidInput."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the {field} is not UTF-8 text", field=field, remedy="set the terminal to UTF-8") from error
    return text


def name_of(task: TaskView) -> str:
    """What a person calls the task: "script", "shot sh010 take 1"."""
    match = TAKE_KEY.match(task.key)
    if match:
        return f"shot {match['shot']} take {match['take']}"
    return NAMES.get(task.key, clean(task.key))


def purpose_of(task: TaskView) -> str:
    """What it makes: the prompt of a take, or what the step is for."""
    return clean(task.about) or PURPOSES.get(task.step, "")


def doing(task: TaskView) -> str:
    """One word for where the task is: its stage while it runs, else its state."""
    if task.state is State.RUNNING and task.stage.startswith(STORE_AWAY):
        return "waiting for the store"
    return STAGES.get(task.stage, task.stage) if task.state is State.RUNNING else STATES[task.state]


def seconds(value: float) -> str:
    """ "9.8 s", "48 s", "2:05"."""
    if value < 9.95:
        return f"{max(0.0, value):.1f} s"
    if value < 99.5:
        return f"{value:.0f} s"
    return watch(value)


def watch(value: float) -> str:
    """Minutes and seconds, as on a stopwatch."""
    whole = int(max(0.0, value))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def left(eta_s: float | None) -> str:
    """How long it may still take, no finer than is known."""
    if eta_s is None:
        return "working out how long it takes"
    if eta_s < 8:
        return "a few seconds left"
    if eta_s < 100:
        return f"about {round(eta_s / 5) * 5} s left"
    return f"about {round(eta_s / 60)} min left" if eta_s < 5400 else f"about {eta_s / 3600:.1f} h left"


def dollars(amount: Decimal) -> str:
    """ "$0.0031", "$1.24"; what is less than a hundredth of a cent says so."""
    if amount == 0:
        return "$0"
    if amount < Decimal("0.0001"):
        return "under $0.0001"
    return f"${amount:.4f}" if amount < 1 else f"${amount:,.2f}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size(num_bytes: int) -> str:
    """ "812 bytes", "4.2 kB", "1.3 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return plural(num_bytes, "byte")


def short_id(whole: str) -> str:
    """The end of an id: commands take it for the whole."""
    return whole[-8:]


def short_worker(whole: str) -> str:
    """FLEET/END: commands take it for the whole."""
    fleet, slash, end = whole.rpartition("/")
    return f"{fleet}{slash}{end[-6:]}"
