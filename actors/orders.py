"""From the rows of a lease to the order that a worker gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actors.contract import Input, Order
from cluster.assets import attempts_prefix, denoise_step_of
from cluster.ledger.jobs import Job
from cluster.ledger.money import Spend
from cluster.store.port import Store

MAX_CHECKPOINTS = 5


def order_of(
    task: Mapping[str, Any],
    job: Job,
    inputs: Sequence[Mapping[str, Any]],
    spends: Mapping[str, Spend],
    resume_from: Sequence[str],
) -> Order:
    return Order(
        task_id=task["id"],
        attempt_id=task["attempt_id"],
        epoch=task["epoch"],
        generation=task["generation"],
        job_id=job.id,
        tenant=job.tenant,
        show=job.show,
        title=job.title,
        spec=job.spec,
        key=task["key"],
        step=task["step"],
        entry=task["entry"],
        params=task["params"],
        model=task["model"],
        inputs=tuple(
            Input(
                key=i["key"],
                step=i["step"],
                model=i["model"],
                params=i["params"],
                files=tuple(i["files"] or ()),
                result=i["result"] or {},
                held_s=spends[i["id"]].held_s if i["id"] in spends else 0.0,
                cost_nano=spends[i["id"]].nano if i["id"] in spends else 0,
                receipt_key=i["receipt_key"],
            )
            for i in inputs
        ),
        resume_from=tuple(resume_from),
    )


def checkpoints(store: Store, tenant: str, attempt_ids: Sequence[str]) -> list[str]:
    """Keys of what these attempts saved, the furthest denoise step first; of equals, the newest attempt's.

    Whether they are of the same question is in their fingerprint: who loads one finds out. Raises StoreUnavailable.
    """
    found = []
    for age, attempt_id in enumerate(attempt_ids):
        for key in store.list(attempts_prefix(tenant, attempt_id)):
            index = denoise_step_of(key)
            if index is not None:
                found.append((-index, age, key))
    return [key for _, _, key in sorted(found)[:MAX_CHECKPOINTS]]
