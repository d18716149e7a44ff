"""Ray on several nodes of this machine, with accelerators that they pretend to have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster import runtime


@contextmanager
def several_nodes(*gpus: int, **head: Any) -> Iterator[Any]:
    """A `Cluster` with a node for each number of accelerators; the first is its head. This process is its driver."""
    runtime.prepare_environment()
    runtime._read_environment_again()  # another test may have imported Ray before
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": gpus[0], **head})
    try:
        for num_gpus in gpus[1:]:
            cluster.add_node(num_cpus=1, num_gpus=num_gpus)
        cluster.wait_for_nodes(timeout=200)
        ray.init(address=cluster.address, namespace=runtime.NAMESPACE, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
