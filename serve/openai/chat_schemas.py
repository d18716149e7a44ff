"""The bodies of `/v1/chat/completions`. What OpenAI's has and a writer cannot do is refused by its name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from actors.contract import Chat, Json
from cluster.errors import Unsupported
from serve.openai.schemas import Body, Metadata, checked, number

MAX_SCHEMA_BYTES = 64 << 10
CANNOT: dict[str, tuple[str, tuple[Any, ...]]] = {
    "tools": ("calls no tools", ([],)),
    "tool_choice": ("calls no tools", ("none", "auto")),
    "parallel_tool_calls": ("calls no tools", (True, False)),
    "functions": ("calls no functions", ([],)),
    "function_call": ("calls no functions", ("none", "auto")),
    "n": ("gives one answer", (1,)),
    "logprobs": ("tells no probabilities", (False,)),
    "top_logprobs": ("tells no probabilities", (0,)),
    "logit_bias": ("takes no bias", ({},)),
    "modalities": ("answers in text alone", (["text"],)),
    "audio": ("answers in text alone", ()),
    "prediction": ("takes no prediction", ()),
    "web_search_options": ("searches nothing", ()),
    "reasoning_effort": ("does not reason by itself", ("none",)),
    "verbosity": ("has one length", ("medium",)),
    "service_tier": ("has one tier", ("auto", "default")),
    "store": ("stores nothing", (False,)),
}
"""What cannot be asked, why, and the values that ask for nothing; null is always one."""
ROLES = ("system", "developer", "user", "assistant")
OF_A_MESSAGE = ("refusal", "annotations", "audio", "function_call", "tool_calls")
"""What a message of an answer has: it may come back, if it says nothing."""


def _schema(value: Json) -> Json:
    if len(json.dumps(value)) > MAX_SCHEMA_BYTES:
        raise ValueError(f"a schema has {MAX_SCHEMA_BYTES} bytes at most")
    return value


def _stops(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Number = BeforeValidator(number)
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Penalty = Annotated[float, Number, Field(ge=-2, le=2, allow_inf_nan=False)]
Count = Annotated[int, Number, Field(ge=1, le=10_000_000)]


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = Field(default=None, max_length=256, description="Taken, and not shown to the model")

    def plain(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class NamedSchema(Body):
    name: str = Field(max_length=64)
    description: str | None = None
    schema_: Annotated[Json, AfterValidator(_schema)] = Field(alias="schema")
    strict: bool | None = Field(default=None, description="An answer is always held to its schema")


class TextFormat(Body):
    type: Literal["text"]


class ObjectFormat(Body):
    type: Literal["json_object"]


class SchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class ChatRequest(Body):
    messages: Annotated[list[Message], Field(min_length=1)]
    model: str = "house-writer"
    max_completion_tokens: Count | None = Field(default=None, description="None: what the model's context has room for")
    max_tokens: Count | None = Field(default=None, description="The older name of max_completion_tokens")
    temperature: Annotated[float, Number, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Number, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    seed: Annotated[int, Number, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[Stop], BeforeValidator(_stops), Field(max_length=4)] | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    response_format: Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=256, description="Taken, and not kept")
    safety_identifier: str | None = Field(default=None, max_length=256, description="Taken, and not kept")
    prompt_cache_key: str | None = Field(default=None, max_length=256, description="Taken: beginnings are known anyway")
    metadata: Metadata | None = Field(default=None, description="Taken, and not kept")

    def chat(self, chat_id: str, *, timeout_s: float) -> Chat:
        form = self.response_format
        schema: Json | None = None
        if isinstance(form, ObjectFormat):
            schema = {"type": "object"}
        elif isinstance(form, SchemaFormat):
            schema = form.json_schema.schema_
        return Chat(
            id=chat_id,
            model=self.model,
            messages=tuple(message.plain() for message in self.messages),
            timeout_s=timeout_s,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=tuple(self.stop or ()),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            schema=schema,
        )


class TokenDetails(BaseModel):
    cached_tokens: int


class ChatUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails


class Said(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: Literal[0] = 0
    message: Said
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage


def chat_request(fields: dict[str, Any]) -> ChatRequest:
    """Raises InvalidInput, Unsupported, each with the path of the field."""
    kept = {name: value for name, value in fields.items() if value is not None}
    for name, (what, nothing) in CANNOT.items():
        if name in kept and kept.pop(name) not in nothing:
            raise Unsupported(f"a writer {what}", field=name, remedy="leave it out")
    messages = kept.get("messages")
    if isinstance(messages, list):
        kept["messages"] = [_of_text(message, f"messages.{at}") for at, message in enumerate(messages)]
    asked = checked(ChatRequest, kept)
    if asked.stream_options is not None and not asked.stream:
        raise Unsupported("only a stream has options", field="stream_options", remedy="leave it out, or set stream")
    return asked


def _of_text(message: Any, path: str) -> Any:
    """What a message says beside its text is refused, and what says nothing is left out."""
    if not isinstance(message, dict):
        return message
    message = {name: value for name, value in message.items() if value not in (None, []) or name not in OF_A_MESSAGE}
    for name in OF_A_MESSAGE:
        if name in message:
            raise Unsupported("a writer reads text alone", field=f"{path}.{name}", remedy="leave it out")
    role, content = message.get("role"), message.get("content")
    if role in ("tool", "function"):
        raise Unsupported("a writer calls no tools", field=f"{path}.role", remedy=f"use {', '.join(ROLES)}")
    for at, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] != "text":
            raise Unsupported(
                f"a writer reads no {part['type'][:40]}", field=f"{path}.content.{at}", remedy="say it in words"
            )
    return message
