"""Schedulers of diffusers as a family needs them: made from a model directory, one per take, saved whole, put back.

What the next step of a solver reads is spread over its attributes: FlowMatchEuler keeps an index; UniPC and DPM++ keep
earlier outputs, their timesteps, the last sample and the order reached. So nothing is listed here by name: saved is
every attribute that differs from the scheduler as it was loaded, and one that cannot be saved is an error, not a loss.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.contract import Json
from cluster.errors import DamagedCheckpoint, DamagedWeights, EngineFailed

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

KNOWN = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler")
PREFIX = "scheduler."
_SCALARS = (bool, int, float, str, type(None))


def load_scheduler(folder: Path) -> Any:
    """The scheduler that `folder` describes. Raises DamagedWeights if it is none of `KNOWN`, set to flow matching."""
    import diffusers

    try:
        config = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
        name = config["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedWeights(f"{folder} has no readable scheduler_config.json: {error}", remedy="restore it") from error
    if name not in KNOWN:
        raise DamagedWeights(f"{folder} asks for {name}", field="scheduler", remedy=f"use one of {', '.join(KNOWN)}")
    kind: Any = getattr(diffusers, name)
    scheduler = kind.from_pretrained(folder, local_files_only=True)
    told = scheduler.config
    if name != KNOWN[0] and (told.prediction_type != "flow_prediction" or not told.use_flow_sigmas):
        raise DamagedWeights(
            f"the {name} in {folder} is not set to flow matching",
            field="scheduler",
            remedy="set prediction_type to flow_prediction and use_flow_sigmas to true",
        )
    if getattr(scheduler, "solver_p", None) is not None:
        raise DamagedWeights(f"the {name} in {folder} holds a second solver, which cannot be saved", field="scheduler")
    return scheduler


def started(
    loaded: Any, num_steps: int, *, device: str, sigmas: np.ndarray | None = None, mu: float | None = None
) -> Any:
    """A scheduler of one take's own, at its first step. `sigmas` and `mu` reach those that take them (DPM++ 2M of
    diffusers 0.42 takes no sigmas and has its own even ones; `mu` is the shift of dynamic shifting)."""
    scheduler = deepcopy(loaded)
    given: dict[str, Any] = {}
    if sigmas is not None and "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        given["sigmas"] = sigmas
    if mu is not None and scheduler.config.get("use_dynamic_shifting"):
        given["mu"] = mu
    scheduler.set_timesteps(num_steps, device=device, **given)
    scheduler.set_begin_index(0)
    return scheduler


def advance(scheduler: Any, output: Tensor, index: int, sample: Tensor, generator: torch.Generator) -> Tensor:
    """The sample after step `index`. Solvers that draw noise draw it from `generator`, never from the process's own.

    It lies contiguous in memory, as one does that was loaded from a checkpoint: equal numbers in another layout take
    another path through the matrix library, and round otherwise.
    """
    drawn = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    after: Tensor = scheduler.step(output, scheduler.timesteps[index], sample, return_dict=False, **drawn)[0]
    return after.contiguous()


def save_scheduler(scheduler: Any, loaded: Any) -> tuple[dict[str, Tensor], Json]:
    """(tensors, facts) of all that `scheduler` has that `loaded`, which it was copied from, has not.

    Raises EngineFailed for an attribute that is neither a tensor, a number, a text nor a list of those.
    """
    tensors: dict[str, Tensor] = {}
    before = vars(loaded)
    facts = {
        name: _packed(value, PREFIX + name, tensors)
        for name, value in vars(scheduler).items()
        if name != "_internal_dict" and not (name in before and _same(value, before[name]))
    }
    return tensors, facts


def load_scheduler_state(loaded: Any, tensors: Mapping[str, Tensor], facts: Json, *, device: str) -> Any:
    """The inverse of `save_scheduler`. Raises DamagedCheckpoint."""
    scheduler = deepcopy(loaded)
    try:
        for name, packed in facts.items():
            setattr(scheduler, name, _unpacked(packed, tensors, device))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DamagedCheckpoint(f"the scheduler in the checkpoint lacks or garbles {error}") from error
    return scheduler


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Json:
    import torch

    if isinstance(value, torch.Tensor):
        # A copy: timesteps kept by a solver are views of the whole schedule, and safetensors refuses shared memory.
        tensors[name] = value.detach().clone()
        return {"tensor": name, "on_host": value.device.type == "cpu"}
    if isinstance(value, list | tuple):
        return {
            "list": [_packed(each, f"{name}.{n}", tensors) for n, each in enumerate(value)],
            "tuple": isinstance(value, tuple),
        }
    if isinstance(value, _SCALARS):
        return {"value": value}
    raise EngineFailed(f"{name} is a {type(value).__name__}, which no checkpoint holds")


def _unpacked(packed: Json, tensors: Mapping[str, Tensor], device: str) -> Any:
    if "tensor" in packed:
        tensor = tensors[packed["tensor"]]
        return tensor if packed["on_host"] else tensor.to(device)
    if "list" in packed:
        held = [_unpacked(each, tensors, device) for each in packed["list"]]
        return tuple(held) if packed["tuple"] else held
    return packed["value"]


def _same(value: Any, before: Any) -> bool:
    import torch

    if isinstance(value, torch.Tensor) or isinstance(before, torch.Tensor):
        both = isinstance(value, torch.Tensor) and isinstance(before, torch.Tensor)
        return both and value.dtype == before.dtype and torch.equal(value.cpu(), before.cpu())
    if isinstance(value, list | tuple):
        return (
            type(value) is type(before)
            and len(value) == len(before)
            and all(_same(one, other) for one, other in zip(value, before, strict=True))
        )
    return type(value) is type(before) and bool(value == before)
