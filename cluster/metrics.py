"""The one table of metrics: what each is called, what it means, which labels it has, and who says it.

Base units, no ids and no prompts, every set of labels closed: by this table, or by what the farm's own configuration
names. Dashboards and alerts use only these names, which a test holds. Source: section 11 of the design.

- LEDGER: exact, from the rows; `/metrics` of the API says them farm-wide, and a restart resets none of them.
- AGENT: of one process, through Ray's agent on its node (`Meters`); a restart begins them anew, so read their rates.
- RAY: what Ray says itself and Prometheus keeps; all else that it says is dropped.

Lines of the bill can be taken back by later lines, and a counter must not fall: what was booked and what was taken back
are counters of their own, and the bill is their difference.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cluster.budgets import Scope
from cluster.errors import FailureClass
from cluster.states import OPEN, AttemptState, JobState

log = logging.getLogger(__name__)


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"


class Source(StrEnum):
    LEDGER = "ledger"
    AGENT = "agent"
    RAY = "ray"


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """`values` are all there are; without them, `bound` says what keeps them few."""

    name: str
    values: tuple[str, ...] = ()
    bound: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """`help` has no full stop: Prometheus shows it beside the name."""

    name: str
    kind: Kind
    source: Source
    help: str
    labels: tuple[Label, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)


OTHER = "other"
MOST_SHOWS = 50
HELD = ("busy", "wasted", "load", "idle")
METERED = ("tokens", "storage", "egress")
ROLES = ("render", "writer", "finish")
TIERS = ("interactive", "normal", "batch")
STAGES = ("starting", "load", "encode", "denoise", "decode", "script", "conform", "upload", OTHER)
WASTES = (*FailureClass, "lost", "stuck", "interrupted", "canceled", "superseded", OTHER)
ENDS = tuple(state.value for state in AttemptState if state is not AttemptState.RUNNING)

ROLE = Label(name="role", values=(*ROLES, OTHER))
TIER = Label(name="tier", values=(*TIERS, OTHER))
MODEL = Label(name="model", bound="the models of the catalog; `none` where there is none")
ACCELERATOR = Label(name="accelerator", bound="those of the rate card")
PRICE_CLASS = Label(name="price_class", bound="those of the rate card")
RECIPE = Label(name="recipe", bound="the modules of pipelines/recipes, and `other`")
JOB_STATE = Label(name="state", values=tuple(JobState))
TASK_STATE = Label(name="state", values=tuple(sorted(OPEN)))
WORKER_STATE = Label(name="state", values=("working", "draining"))
KIND = Label(name="kind", values=(*HELD, *METERED, OTHER))
HELD_KIND = Label(name="kind", values=HELD)
TENANT = Label(name="tenant", bound="those of the shows that are named")
SHOW = Label(name="show", bound=f"the {MOST_SHOWS} that cost most; `farm`, who pays for idle workers; `other`")
SHOW_OR_NONE = Label(name="show", bound=f"{SHOW.bound}; `none` for that of a tenant")
SCOPE = Label(name="scope", values=tuple(Scope))
REASON = Label(name="reason", values=WASTES)
REDEEMED = Label(name="reason", values=("resumed", "adopted", OTHER))
TOKEN = Label(name="token", values=("prompt", "completion", "cached"))
STAGE = Label(name="stage", values=STAGES)
OUTCOME = Label(name="outcome", values=ENDS)
FAILURE = Label(name="failure", values=tuple(FailureClass))
SAVED = Label(name="outcome", values=("saved", "failed"))
HEARD = Label(name="outcome", values=("delivered", "failed"))
REAPER = Label(name="reaper", bound="the chores of the farm")
INSTANCE = Label(name="instance", bound="the nodes")
GPU = Label(name="GpuIndex", bound="the accelerators of a node")
GPU_NAME = Label(name="GpuDeviceName", bound="the kinds of accelerators")

HERE = (ACCELERATOR, PRICE_CLASS)


def _of(source: Source, kind: Kind, rows: Mapping[str, tuple[Any, ...]]) -> tuple[Metric, ...]:
    return tuple(
        Metric(name=name, kind=kind, source=source, help=help, labels=tuple(labels))
        for name, (help, *labels) in rows.items()
    )


LEDGER = (
    *_of(
        Source.LEDGER,
        Kind.COUNTER,
        {
            "farm_jobs_submitted_total": ("Jobs that were taken on", RECIPE),
            "farm_accelerator_seconds_total": (
                "Accelerator-seconds that were booked (of workers on a cpu: worker-seconds)",
                HELD_KIND,
                *HERE,
            ),
            "farm_accelerator_seconds_reversed_total": ("Of these, what later lines took back", HELD_KIND, *HERE),
            "farm_cost_usd_total": ("Dollars that were booked", KIND, *HERE),
            "farm_cost_reversed_usd_total": ("Of these, what later lines took back", KIND, *HERE),
            "farm_wasted_seconds_total": ("Accelerator-seconds that were booked as wasted", REASON),
            "farm_wasted_usd_total": ("Dollars that were booked as wasted", REASON),
            "farm_redeemed_seconds_total": ("Wasted accelerator-seconds that turned out to be of use", REDEEMED),
            "farm_redeemed_usd_total": ("Wasted dollars that turned out to be of use", REDEEMED),
            "farm_storage_byte_seconds_total": ("Bytes that were kept times how long, as far as they are booked",),
            "farm_egress_bytes_total": ("Bytes that left the farm, as far as they are booked",),
            "farm_chats_total": ("Answers to chats", MODEL),
            "farm_tokens_total": ("Tokens of chats; `cached` are part of `prompt`", MODEL, TOKEN),
            "farm_dispatcher_terms_total": ("Dispatchers that have worked on the ledger",),
        },
    ),
    *_of(
        Source.LEDGER,
        Kind.GAUGE,
        {
            "farm_jobs": ("Jobs of the ledger by the state they are in", RECIPE, JOB_STATE),
            "farm_tasks": ("Open tasks of the jobs that are not over", TASK_STATE),
            "farm_backlog_seconds": ("Predicted worker-seconds of the tasks that are ready", ROLE, TIER),
            "farm_queue_oldest_seconds": ("How long the longest of the ready tasks has waited", ROLE),
            "farm_workers": ("Workers that are here", ROLE, MODEL, *HERE, WORKER_STATE),
            "farm_show_cost_usd": (
                "Net cost of a show since it began; a show may enter and leave the 50",
                TENANT,
                SHOW,
                KIND,
            ),
            "farm_budget_cap_usd": (
                "Cap of a budget; of several under one name, of the one that has the smallest part left",
                SCOPE,
                TENANT,
                SHOW_OR_NONE,
            ),
            "farm_budget_left_usd": (
                "What the same budget has left, less what running tasks have reserved; below 0 it is overspent",
                SCOPE,
                TENANT,
                SHOW_OR_NONE,
            ),
            "farm_webhooks_waiting": ("Deliveries of webhooks that are due or will be tried again",),
            "farm_webhooks_oldest_seconds": ("How long the longest of these has waited since its event",),
            "farm_dispatcher_silence_seconds": ("Since a dispatcher last said that it is alive",),
            "farm_reaper_age_seconds": ("Since a chore of the farm's upkeep last succeeded", REAPER),
            "farm_collect_seconds": ("How long the last look at the ledger took",),
        },
    ),
)
AGENT = (
    *_of(
        Source.AGENT,
        Kind.COUNTER,
        {
            "farm_leases_total": ("Tasks that were given out", ROLE, TIER),
            "farm_queue_wait_seconds_total": ("How long these were ready before", ROLE, TIER),
            "farm_attempts_total": ("Attempts that ended", ROLE, OUTCOME),
            "farm_failures_total": ("Attempts that failed, by whose fault: what retries are made of", ROLE, FAILURE),
            "farm_stage_seconds_total": ("Seconds that workers spent in a stage", MODEL, STAGE),
            "farm_denoise_steps_total": ("Denoise steps", MODEL),
            "farm_frames_total": ("Frames that were committed to a receipt", MODEL),
            "farm_content_seconds_total": ("Seconds of film that these play", MODEL),
            "farm_checkpoints_total": ("Checkpoints of denoises", SAVED),
            "farm_upload_bytes_total": ("Bytes that workers put into the store",),
            "farm_upload_failures_total": ("Times that the store did not take a file",),
            "farm_webhook_tries_total": ("Webhooks that were sent", HEARD),
        },
    ),
    *_of(
        Source.AGENT,
        Kind.GAUGE,
        {
            "farm_leases": ("Tasks that run", ROLE),
            "farm_heartbeat_lag_seconds": ("Since the worker that is silent for longest was last heard",),
            "farm_checkpoint_age_seconds": ("Work that a denoise would lose now", MODEL),
            "farm_disk_free_bytes": ("Free on the file system of FARM_HOME",),
            "farm_disk_size_bytes": ("Size of the file system of FARM_HOME",),
        },
    ),
)
RAY = _of(
    Source.RAY,
    Kind.GAUGE,
    {
        "ray_node_cpu_utilization": ("Percent of the node's cores that are busy", INSTANCE),
        "ray_node_mem_used": ("Bytes of memory that are used on the node", INSTANCE),
        "ray_node_mem_total": ("Bytes of memory of the node", INSTANCE),
        "ray_node_gpus_utilization": ("Percent of an accelerator that is busy", INSTANCE, GPU, GPU_NAME),
        "ray_node_gram_used": ("Megabytes of an accelerator's memory that are used", INSTANCE, GPU, GPU_NAME),
    },
)
TABLE: Mapping[str, Metric] = {metric.name: metric for metric in (*LEDGER, *AGENT, *RAY)}

Labels = tuple[str, ...]
"""Values of the labels of a metric, in the order of the table."""


def labelled(metric: Metric, labels: Mapping[str, str | None]) -> Labels:
    """The values in their order; what is not in a closed set is `other`, what is not there `none`."""
    assert labels.keys() == set(metric.label_names), f"{metric.name} has the labels {metric.label_names}"
    return tuple(_known(label, labels[label.name]) for label in metric.labels)


def _known(label: Label, value: str | None) -> str:
    value = value or "none"
    return value if not label.values or value in label.values else OTHER


class Meters:
    """What one process has counted, and how to read its gauges. It costs nothing but a dictionary until `export`.

    Any thread may call it. Gauges are read when they are sent, so an age goes on growing while its loop hangs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: dict[tuple[str, Labels], float] = {}
        self._sent: dict[tuple[str, Labels], float] = {}
        self._read: dict[str, Callable[[], Mapping[Labels, float]]] = {}

    def count(self, name: str, value: float = 1.0, **labels: str | None) -> None:
        """Adds to a counter of AGENT. What is not above 0 adds nothing."""
        metric = TABLE[name]
        assert (metric.kind, metric.source) == (Kind.COUNTER, Source.AGENT), name
        key = (name, labelled(metric, labels))
        if value > 0:
            with self._lock:
                self._counted[key] = self._counted.get(key, 0.0) + value

    def watch(self, name: str, read: Callable[[], Mapping[Labels, float]]) -> None:
        """A gauge of AGENT: `read` returns its values, by the values of its labels in the order of the table."""
        metric = TABLE[name]
        assert (metric.kind, metric.source) == (Kind.GAUGE, Source.AGENT), name
        self._read[name] = read

    def counted(self, name: str, **labels: str | None) -> float:
        """Of a counter so far."""
        return self._counted.get((name, labelled(TABLE[name], labels)), 0.0)

    def gauges(self, name: str) -> Mapping[Labels, float]:
        return self._read[name]()

    def export(self, *, every_s: float = 5.0) -> None:
        """From now on Ray's agent on this node is told, for the life of the process. It forgets gauges after 20 s."""
        stop = threading.Event()  # never set
        instruments: dict[str, Any] = {}

        def run() -> None:
            while not stop.wait(every_s):
                try:
                    self._send(instruments)
                except Exception:  # a gauge that cannot be read, or Ray that ends: the next round tries again
                    log.debug("Metrics could not be sent.", exc_info=True)

        threading.Thread(target=run, name="meters", daemon=True).start()

    def _send(self, instruments: dict[str, Any]) -> None:
        with self._lock:
            counted = dict(self._counted)
        for (name, labels), total in counted.items():
            more = total - self._sent.get((name, labels), 0.0)
            if more > 0:
                _instrument(instruments, name).inc(more, tags=dict(zip(TABLE[name].label_names, labels, strict=True)))
                self._sent[name, labels] = total
        for name, read in list(self._read.items()):
            for labels, value in read().items():
                _instrument(instruments, name).set(value, tags=dict(zip(TABLE[name].label_names, labels, strict=True)))


def _instrument(made: dict[str, Any], name: str) -> Any:
    if name not in made:
        from ray.util import metrics

        metric = TABLE[name]
        kind = metrics.Counter if metric.kind is Kind.COUNTER else metrics.Gauge
        made[name] = kind(name, description=metric.help, tag_keys=metric.label_names)
    return made[name]
