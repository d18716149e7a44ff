"""Tokens per second of the writer against vLLM's own engine, called directly; four guided answers at a time.

make bench
"""

from __future__ import annotations

import asyncio
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actors.catalog import Catalog
from actors.weights import weights_dir
from actors.writer import Writer

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
PAIRS = 5
AT_ONCE = 4
SCHEMA = {
    "type": "object",
    "properties": {"line": {"type": "string", "pattern": "^[A-Z][a-z ,]{60,90}\\.$"}},
    "required": ["line"],
    "additionalProperties": False,
}


def chat(pair: int, n: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Tell in one sentence what a boat sees in night {pair} of week {n}, as JSON."}]


def test_tokens_per_second_beside_the_engine_alone(tmp_path: Path) -> None:
    model = Catalog.load(None).model("house-writer")
    writer = Writer(weights_dir(model, tmp_path), num_threads=1, **model.engine)
    writer.start()
    try:
        through, alone = [], []
        _through(writer, 99)
        _alone(writer, 99)
        for pair in range(PAIRS):
            through.append(_through(writer, pair))
            alone.append(_alone(writer, pair + 1000))
        ratios = [t / a for t, a in zip(through, alone, strict=True)]
        print(
            f"\ntokens/s, {AT_ONCE} at once: writer {statistics.median(through):.1f}, "
            f"vLLM {statistics.median(alone):.1f}"
            f"vLLM {statistics.median(alone):.1f}"
        )
        print(f"writer / vLLM: {statistics.median(ratios):.2f}  (of {', '.join(f'{r:.2f}' for r in ratios)})")
        assert len(ratios) == PAIRS
    finally:
        writer.close()


def _through(writer: Writer, pair: int) -> float:
    """Completion tokens per second through `Writer.complete`."""

    def one(n: int) -> int:
        answer = writer.complete(
            chat(pair, n), schema=SCHEMA, seed=pair * 10 + n, max_tokens=120, temperature=0.7, timeout_s=300
        )
        return answer.completion_tokens

    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        tokens = sum(pool.map(one, range(AT_ONCE)))
    return tokens / (time.perf_counter() - began)


def _alone(writer: Writer, pair: int) -> float:
    """The same through vLLM's AsyncLLM itself, on its own loop."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    engine, loop, tokenizer = writer._engine, writer._loop, writer._tokenizer
    assert engine is not None
    assert loop is not None

    async def one(n: int) -> int:
        prompt = tokenizer.apply_chat_template(chat(pair, n), tokenize=False, add_generation_prompt=True)
        params = SamplingParams(
            temperature=0.7,
            seed=pair * 10 + n,
            max_tokens=120,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(json=SCHEMA),
        )
        tokens = 0
        async for output in engine.generate(prompt, params, request_id=f"bench-{pair}-{n}"):
            tokens = len(output.outputs[0].token_ids)
        return tokens

    async def every() -> int:
        return sum(await asyncio.gather(*(one(n) for n in range(AT_ONCE))))

    began = time.perf_counter()
    tokens = asyncio.run_coroutine_threadsafe(every(), loop).result(600)
    return tokens / (time.perf_counter() - began)
