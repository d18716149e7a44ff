"""vLLM as a neighbour: what it reads from the environment, the process it starts, its errors as ours."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from cluster.errors import EngineFailed, FarmError, InvalidInput, WorkerLost

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


def prepare_environment(num_threads: int, kv_cache_gib: int) -> bool:
    """Set what vLLM reads at import and hands to its child; True on a CPU. On accelerators vLLM picks the device."""
    import torch

    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
    os.environ.update(VLLM_LOGGING_LEVEL="ERROR", TORCH_CPP_LOG_LEVEL="ERROR", PYTHONWARNINGS="ignore::FutureWarning")
    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        os.environ.update(
            VLLM_ENABLE_V1_MULTIPROCESSING="0",  # lets the `uni` executor stand: two processes, nothing in /dev/shm
            VLLM_CPU_OMP_THREADS_BIND="nobind",  # cores are shared with the render workers
            VLLM_CPU_KVCACHE_SPACE=str(kv_cache_gib),
            VLLM_WORKER_MULTIPROC_METHOD="spawn",
            OMP_NUM_THREADS=str(num_threads),  # 2 on two busy cores is 4-6 times slower than 1
        )
    return on_cpu


def processes(engine: AsyncLLM | None) -> list[Any]:
    """The engine core's child processes, as `multiprocessing` objects."""
    resources = getattr(getattr(engine, "engine_core", None), "resources", None)
    return list(getattr(getattr(resources, "engine_manager", None), "processes", []))


def release_sockets(engine: AsyncLLM | None) -> None:
    """Close the ZeroMQ context that an engine leaves open when it is shut down; its loop must have stopped."""
    resources = getattr(getattr(engine, "engine_core", None), "resources", None)
    if resources is not None:
        resources.ctx.destroy(linger=0)


def as_ours(error: Exception, *, field: str = "messages") -> FarmError:
    """An error of the tree for whatever the engine raised, with the original as its cause; `field` is what is at fault
    if the request is."""
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    if isinstance(error, FarmError):
        return error
    ours: FarmError
    if isinstance(error, EngineDeadError):
        ours = WorkerLost("the writer's engine died")
    else:
        cause = error.__cause__ if isinstance(error, EngineGenerateError) and error.__cause__ else error
        if isinstance(cause, (ValueError, VLLMClientError)):
            ours = InvalidInput(f"the writer refuses the request: {cause}", field=field)
        else:
            ours = EngineFailed(f"the writer failed: {type(cause).__name__}: {cause}")
    ours.__cause__ = error
    return ours


def installed_version(distribution: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(distribution)
    return None
