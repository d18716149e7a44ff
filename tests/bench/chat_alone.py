"""vLLM's own engine, called directly in the worker that holds it: what chats over HTTP are held against."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from actors.contract import Bench, Made

NUM_TOKENS = 64


def question(pair: int, n: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"Tell me a very long story about boat {pair} in harbour {n}, with all details."}
    ]


def alone(bench: Bench, tools: Any) -> Made:
    """A step of a writer worker; `params` hold `pair` and `at_once`. Result: tokens, seconds, firsts (seconds)."""
    writer, params = tools.writer, bench.order.params

    async def every() -> list[tuple[int, float]]:
        return await asyncio.gather(*(_one(writer, params["pair"], n) for n in range(params["at_once"])))

    began_s = time.perf_counter()
    answers = asyncio.run_coroutine_threadsafe(every(), writer._loop).result(600)
    took_s = time.perf_counter() - began_s
    return Made(result={"tokens": sum(a[0] for a in answers), "seconds": took_s, "firsts": [a[1] for a in answers]})


async def _one(writer: Any, pair: int, n: int) -> tuple[int, float]:
    """(tokens, seconds until the first)."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    began_s, first_s, tokens = time.perf_counter(), 0.0, 0
    prompt = writer._tokenizer.apply_chat_template(question(pair, n), tokenize=False, add_generation_prompt=True)
    params = SamplingParams(
        temperature=0.7, seed=pair * 10 + n, max_tokens=NUM_TOKENS, output_kind=RequestOutputKind.DELTA
    )
    async for output in writer._engine.generate(prompt, params, request_id=f"alone-{pair}-{n}"):
        tokens += len(output.outputs[0].token_ids)
        first_s = first_s or time.perf_counter() - began_s
    return tokens, first_s
