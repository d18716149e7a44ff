"""Family `generic`: any diffusers pipeline that draws from a prompt, run whole: a new model works on its first day.

The pipeline runs in a thread of its own and is held after each denoise step (`callback_on_step_end`) until the next
call of `step`: so there is progress, and a take that is dropped stops where it is. What lies between two steps is
inside the pipeline, so `save` has nothing to give: a take that was interrupted starts over. A model that should resume
wants a family of its own. States of one batch run one after the other, so batch mates never change bits; what the
pipeline itself computes is as deterministic as its kernels are.
"""

from __future__ import annotations

import copy
import inspect
import json
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.contract import ShotSpec
from cluster.errors import (
    DamagedCheckpoint,
    DamagedWeights,
    InvalidSettings,
    InvalidSpec,
    OutOfMemory,
    QualityCheckFailed,
)

if TYPE_CHECKING:
    import numpy as np

NEEDED = ("prompt", "height", "width", "num_inference_steps", "generator", "output_type", "callback_on_step_end")
GIVEN = frozenset([*NEEDED, "negative_prompt", "num_frames", "guidance_scale", "frame_rate", "fps", "self"])
CHUNK_FRAMES = 16
STOPS_WITHIN_S = 30.0


def parameters(class_name: str) -> Mapping[str, inspect.Parameter]:
    """What a pipeline class can be asked for. Raises InvalidSettings if a shot alone cannot drive it, or nothing can
    stop it."""
    import diffusers

    kind = getattr(diffusers, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise InvalidSettings(
            f"diffusers {diffusers.__version__} has no pipeline {class_name}", remedy="a newer diffusers may have it"
        )
    asked = inspect.signature(kind.__call__).parameters
    if lacking := [name for name in NEEDED if name not in asked]:
        raise InvalidSettings(f"{class_name} takes no {', '.join(lacking)}: it cannot be driven by a shot")
    needs = [name for name, one in asked.items() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if extra := [name for name in needs if name not in GIVEN]:
        raise InvalidSettings(f"{class_name} needs {', '.join(extra)}, which no shot has")
    return asked


class _Stopped(Exception):
    """Unwinds a pipeline whose take was dropped."""


class Run:
    """One call of a pipeline in a thread, which moves only while somebody waits for it."""

    def __init__(self, call: Callable[[Callable[..., Any]], Any], num_steps: int) -> None:
        self.done, self.total = 0, num_steps
        self.output: Any = None
        self._call = call
        self._error: BaseException | None = None
        self._ended = self._stopping = False
        self._go, self._arrived = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    def advance(self) -> None:
        """On to the end of the next denoise step, or of the pipeline. Raises what the pipeline raised."""
        if not self._ended:
            if self._thread is None:
                self._thread = threading.Thread(target=self._drive, name="pipeline", daemon=True)
                self._thread.start()
            else:
                self._go.release()
            self._arrived.acquire()
        if self._error is not None:
            raise self._error

    def finish(self) -> Any:
        """The pipeline's output."""
        while not self._ended:
            self.advance()
        self.advance()
        return self.output

    def stop(self) -> None:
        """Unwinds the pipeline and waits until its thread has ended."""
        self._stopping = True
        if self._thread is not None:
            self._go.release()
            self._thread.join(STOPS_WITHIN_S)

    def _drive(self) -> None:
        try:
            self.output = self._call(self._after_step)
            self.total = self.done  # some solvers take fewer steps than they were asked for
        except _Stopped:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._ended = True
            self._arrived.release()

    def _after_step(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self.done += 1
        self.total = max(self.done, int(getattr(pipeline, "num_timesteps", self.total)))  # Heun's are nearly twice
        self._arrived.release()
        self._go.acquire()
        if self._stopping:
            raise _Stopped
        return tensors


@dataclass(kw_only=True, slots=True, weakref_slot=True)
class State:
    """One take on its way. When nobody holds it any more, its run is stopped."""

    spec: ShotSpec
    run: Run


class GenericFamily:
    """One pipeline, loaded; see `actors.contract.Family`."""

    def __init__(self, pipeline: Any, *, asked: Mapping[str, inspect.Parameter]) -> None:
        self.pipeline, self.asked = pipeline, asked
        self.name = type(pipeline).__name__

    def encode(self, specs: Sequence[ShotSpec]) -> list[None]:
        """Nothing: the pipeline encodes its prompt itself, in the first step."""
        return [None for _ in specs]

    def start(self, spec: ShotSpec, conditioning: None) -> State:
        """Raises InvalidSpec for a clip from a pipeline that draws stills."""
        import torch

        if spec.num_frames != 1 and "num_frames" not in self.asked:
            raise InvalidSpec(f"{self.name} draws stills, got num_frames {spec.num_frames}", field="num_frames")
        fps = int(spec.fps) if spec.fps.denominator == 1 else float(spec.fps)
        offered: dict[str, Any] = {
            "prompt": spec.prompt,
            "negative_prompt": spec.negative_prompt or None,
            "height": spec.height_px,
            "width": spec.width_px,
            "num_frames": spec.num_frames,
            "frame_rate": fps,
            "fps": fps,
            "num_inference_steps": spec.num_steps,
            "guidance_scale": spec.guidance_scale,
            "generator": torch.Generator("cpu").manual_seed(spec.seed),  # all devices start alike
            "output_type": "np",
        }
        given = {name: value for name, value in offered.items() if name in self.asked and value is not None}
        pipeline = copy.copy(self.pipeline)  # shares the weights; guidance, timesteps and solver are the take's own
        pipeline.scheduler = copy.deepcopy(self.pipeline.scheduler)
        run = Run(lambda after_step: pipeline(**given, callback_on_step_end=after_step), spec.num_steps)
        state = State(spec=spec, run=run)
        weakref.finalize(state, run.stop)
        return state

    def step(self, states: Sequence[State]) -> None:
        """One denoise step for each, one after the other. Raises InvalidSpec if the pipeline refuses the shot."""
        for state in states:
            with _ours(self.name, state.run):
                state.run.advance()

    def progress(self, state: State) -> tuple[int, int]:
        """(denoise steps done, denoise steps in all), as the pipeline itself counts them once it runs."""
        return state.run.done, state.run.total

    def save(self, state: State) -> None:
        """No checkpoint: what lies between two steps is inside the pipeline."""
        return

    def load(self, data: bytes, spec: ShotSpec) -> State:
        raise DamagedCheckpoint("a pipeline that runs whole has no checkpoints", remedy="the denoise starts over")

    def decode(self, state: State) -> Iterator[np.ndarray]:
        """Frames in chunks, uint8 (frames, height_px, width_px, 3). The pipeline decodes whole; only then comes the
        first. Raises QualityCheckFailed for pixels that are no numbers."""
        with _ours(self.name, state.run):
            frames = _frames(state.run.finish())
        height_px, width_px = frames.shape[1:3]
        if (width_px, height_px) != (state.spec.width_px, state.spec.height_px):
            asked = f"{state.spec.width_px} x {state.spec.height_px}"
            raise InvalidSpec(f"{self.name} drew {width_px} x {height_px} instead of {asked}", field="size")
        for first in range(0, len(frames), CHUNK_FRAMES):
            yield frames[first : first + CHUNK_FRAMES]


def load(model_dir: Path, *, device: str, dtype: str, num_threads: int) -> GenericFamily:
    """Loads a diffusers directory, safetensors only, without the network and without code of its own.

    Raises DamagedWeights; InvalidSettings if the pipeline cannot be driven by a shot.
    """
    import diffusers
    import torch

    torch.set_num_threads(num_threads)
    try:
        name = json.loads((model_dir / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedWeights(f"{model_dir} is no model directory: {error}", remedy="restore it") from error
    if not isinstance(name, str) or any(model_dir.rglob("*.py")):
        raise DamagedWeights(f"{model_dir} brings code of its own, which is not run", remedy="use one without")
    asked = parameters(name)
    try:
        pipeline = getattr(diffusers, name).from_pretrained(
            model_dir, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
        )
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"no memory left for {model_dir}: {error}", remedy="use a larger accelerator") from error
    except Exception as error:  # whatever a loader raises, the directory is not what it should be
        reason = " ".join(str(error).split())[:200]
        raise DamagedWeights(f"{model_dir} cannot be loaded: {reason}", remedy="restore it") from error
    pipeline.set_progress_bar_config(disable=True)
    return GenericFamily(pipeline.to(device), asked=asked)


@contextmanager
def _ours(name: str, run: Run) -> Iterator[None]:
    """Turns what a pipeline raises into errors of the farm; a ValueError before its first step means bad input."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"the accelerator has no memory left: {error}", remedy="use a larger one") from error
    except ValueError as error:
        if run.done:
            raise
        raise InvalidSpec(f"{name} refuses the shot: {' '.join(str(error).split())[:300]}") from error


def _frames(output: Any) -> np.ndarray:
    """uint8 (frames, height, width, 3) of the first video or picture in a pipeline's output."""
    import numpy as np

    made = next((found for name in ("frames", "images") if (found := getattr(output, name, None)) is not None), None)
    drawn = np.asarray((output[0] if made is None else made)[0])
    drawn = drawn[np.newaxis] if drawn.ndim == 3 else drawn
    if drawn.ndim != 4 or drawn.shape[3] != 3:
        raise QualityCheckFailed(f"the pipeline made {drawn.shape} instead of coloured frames")
    if drawn.dtype == np.uint8:
        return drawn
    if not np.isfinite(drawn).all():
        raise QualityCheckFailed("the pipeline drew pixels that are no numbers")
    shown: np.ndarray = (drawn.clip(0, 1) * 255).round().astype(np.uint8)
    return shown
