"""What somebody's program does with OpenAI's client, one call after another, in an environment with nothing else of
ours: `python calls.py URL KEY SHIM`. Prints one JSON object: what each call came to, and its client's version.

SHIM answers `/status/CODE/...` with CODE again and again, and counts: for what the client repeats by itself.
"""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.request
import warnings
from collections.abc import Callable
from typing import Any

import openai
from openai import OpenAI
from pydantic import BaseModel

BOAT = "a red boat crosses the sea"
FISH = "a blue fish drifts on a coral reef"
RETRIES = {"400": 1, "401": 1, "402": 1, "403": 1, "404": 1, "408": 3, "409": 3, "410": 1, "413": 1, "422": 1, "429": 3,
           "500": 3, "502": 3, "503": 3, "409-false": 1, "429-false": 1, "400-true": 3, "429-after-300": 1}  # fmt: skip
"""How often a request is sent that is always answered so."""


class Title(BaseModel):
    title: str


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    url, key, shim = sys.argv[1:4]
    client = OpenAI(base_url=f"{url}/v1", api_key=key)
    said: dict[str, str] = {"version": openai.__version__}
    made: dict[str, Any] = {}

    def call(name: str, work: Callable[[], str]) -> None:
        try:
            said[name] = work()
        except Exception as error:
            said[name] = f"FAILED {type(error).__name__}: {error}"[:300]

    def create_and_poll() -> str:
        made["one"] = client.videos.create_and_poll(prompt=BOAT, seconds="2", poll_interval_ms=50)  # type: ignore[arg-type]
        return str(made["one"].status)

    def listed() -> str:
        ids = [client.videos.create(prompt=BOAT, extra_body={"seed": n}).id for n in range(3)]
        seen = [video.id for video in client.videos.list(limit=2)]
        return "completed" if seen[:4] == [*ids[::-1], made["one"].id] else f"FAILED {seen}"

    def remix() -> str:
        video = client.videos.remix(made["one"].id, prompt=FISH)
        return str(client.videos.poll(video.id, poll_interval_ms=50).status)

    def download() -> str:
        begins = {"video": b"ftyp", "thumbnail": b"PNG", "spritesheet": b"PNG"}
        for variant, mark in begins.items():
            data = client.videos.download_content(made["one"].id, variant=variant).read()  # type: ignore[arg-type]
            assert mark in data[:12], variant
        return "completed"

    def delete() -> str:
        assert client.videos.delete(made["one"].id).deleted
        try:
            client.videos.retrieve(made["one"].id)
        except openai.NotFoundError as error:
            return "completed" if error.request_id and error.code == "not_found" else "FAILED"
        return "FAILED it is there"

    def image() -> str:
        images = client.images.generate(prompt=BOAT, model="house-video", n=2)
        return "completed" if len([i for i in images.data or [] if i.b64_json]) == 2 else "FAILED"

    def models() -> str:
        ids = [model.id for model in client.models.list()]
        return "completed" if "house-video" in ids and client.models.retrieve("house-video").id else "FAILED"

    messages: Any = [{"role": "user", "content": '{"title": "The boat"}'}]

    def chat() -> str:
        answer = client.chat.completions.create(model="house-writer", messages=messages, max_tokens=20)
        return "completed" if answer.choices[0].message.content and answer.usage else "FAILED"

    def chat_streamed() -> str:
        parts = client.chat.completions.create(model="house-writer", messages=messages, max_tokens=20, stream=True)
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        return "completed" if text else "FAILED"

    def chat_parsed() -> str:
        answer = client.chat.completions.parse(
            model="house-writer", messages=messages, response_format=Title, max_tokens=60
        )
        return "completed" if isinstance(answer.choices[0].message.parsed, Title) else "FAILED"

    def retries() -> str:
        wrong = {}
        patient = {"429-after-300": 3} if openai.__version__ == "2.9.0" else {}  # it waits as if it had not been told
        for status, right in {**RETRIES, **patient}.items():
            with contextlib.suppress(openai.APIStatusError):
                OpenAI(base_url=f"{shim}/status/{status}/v1", api_key=key).models.list()
            with urllib.request.urlopen(f"{shim}/count/{status}") as counted:
                num = json.load(counted)
            if num != right:
                wrong[status] = num
        return "completed" if not wrong else f"FAILED {wrong}"

    for work in (create_and_poll, listed, remix, download, delete, image, models, chat, chat_streamed, chat_parsed):
        call(work.__name__, work)
    call("retries", retries)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
