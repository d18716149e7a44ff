"""What a fleet asks for, as Ray options and as a torch device: the only place that knows vendors' names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.errors import InvalidSettings

OWN_RESOURCE = {"tpu": "TPU", "neuron": "neuron_cores", "gaudi": "HPU", "ascend": "NPU"}
"""Accelerators that Ray counts under a resource of their own; NVIDIA's and AMD's are its `GPU`."""

TORCH_DEVICE = {"cpu": "cpu", "tpu": "xla", "neuron": "xla", "gaudi": "hpu", "ascend": "npu"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """A homogeneous set of workers."""

    name: str
    role: str  # render | writer | finish
    model: str | None = None  # id in the catalog, held warm
    accelerator: str = "cpu"  # cpu, GPU (any), a type that Ray knows (H100, L4, ...), or a vendor's of OWN_RESOURCE
    accelerators_per_worker: int = 0
    num_workers: int = 1
    price_class: str = "on-demand"
    num_threads: int = 1  # of math libraries, on a CPU
    engine: str | None = None  # import string of another engine factory than the role's own

    def __post_init__(self) -> None:
        if (self.accelerator == "cpu") != (self.accelerators_per_worker == 0):
            raise InvalidSettings(
                f"fleet {self.name}: {self.accelerator} with {self.accelerators_per_worker} accelerators a worker",
                field="accelerators_per_worker",
                remedy="0 for cpu, 1 or more for an accelerator",
            )


def ray_options(fleet: Fleet) -> dict[str, Any]:
    """Options of the fleet's actors. CPU workers take no logical CPU, so that a farm fits on two cores; their
    threads are bounded instead, and they see no accelerator of their node."""
    env = {"OMP_NUM_THREADS": str(fleet.num_threads), "MKL_NUM_THREADS": str(fleet.num_threads)}
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0}
    if fleet.accelerator == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    elif fleet.accelerator in OWN_RESOURCE:
        options["resources"] = {OWN_RESOURCE[fleet.accelerator]: fleet.accelerators_per_worker}
    else:
        options["num_gpus"] = fleet.accelerators_per_worker
        if fleet.accelerator != "GPU":
            options["label_selector"] = {"ray.io/accelerator-type": fleet.accelerator}
    return options | {"runtime_env": {"env_vars": env}}


def torch_device(fleet: Fleet, *, cuda_is_there: bool) -> str:
    """The torch device of a worker. Pretended accelerators (Ray counts them, torch has none) compute on the CPU."""
    device = TORCH_DEVICE.get(fleet.accelerator, "cuda")
    return "cpu" if device == "cuda" and not cuda_is_there else device


def torch_dtype(device: str) -> str:
    return "float32" if device == "cpu" else "bfloat16"
