"""A farm over HTTP as its client sees it: what is asked again, what is not, and what its answers become."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from cluster.errors import FarmError, IllegalMove, InvalidSettings, NotFound, RateLimited, Unavailable, UserMistake
from serve.remote import TRIES, Remote


def envelope(code: str, **more: Any) -> dict[str, Any]:
    return {
        "error": {"message": "it is so; do that", "type": "x", "param": "job", "code": code, "remedy": "do that"} | more
    }


class Farm:
    """Answers in their order, the last one for ever."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []
        self.slept: list[float] = []
        self.remote = Remote(
            "http://farm.test", "farm_secret", transport=httpx.MockTransport(self.answer), sleep=self.slept.append
        )

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        one = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(one, Exception):
            raise one
        return one


def away(**headers: str) -> httpx.Response:
    return httpx.Response(503, json=envelope("ledger_unavailable"), headers=headers)


def test_what_changes_nothing_is_asked_again_until_the_farm_is_back():
    farm = Farm(httpx.ConnectError("refused"), away(**{"retry-after-ms": "1500"}), httpx.Response(200, json={"a": 1}))
    assert farm.remote.get("/v1/jobs", limit=3, after=None) == {"a": 1}
    assert [str(request.url) for request in farm.asked] == ["http://farm.test/v1/jobs?limit=3"] * 3
    assert farm.slept[0] <= 0.5
    assert farm.slept[1] == 1.5


def test_it_is_not_asked_for_ever():
    farm = Farm(httpx.ReadTimeout("slow"))
    with pytest.raises(Unavailable, match=r"the farm at http://farm\.test does not answer: it took too long"):
        farm.remote.get("/v1/jobs")
    assert (len(farm.asked), len(farm.slept)) == (TRIES, TRIES - 1)
    assert sum(farm.slept) <= 0.5 + 1.0 + 2.0


@pytest.mark.parametrize("ask", [lambda r: r.post("/v1/x"), lambda r: r.put("/v1/x", {})], ids=["post", "put"])
@pytest.mark.parametrize("answer", [away(), httpx.ConnectError("refused")], ids=["away", "refused"])
def test_what_changes_something_is_sent_once(ask: Callable[[Remote], Any], answer: Any):
    farm = Farm(answer)
    with pytest.raises(Unavailable):
        ask(farm.remote)
    assert (len(farm.asked), farm.slept) == (1, [])


def test_a_wait_that_is_too_long_is_the_persons_to_wait():
    farm = Farm(httpx.Response(429, json=envelope("rate_limited"), headers={"retry-after-ms": "60000"}))
    with pytest.raises(RateLimited) as refused:
        farm.remote.get("/v1/jobs")
    assert (len(farm.asked), refused.value.retry_after_s) == (1, 60.0)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "not_found", NotFound),
        (409, "illegal_move", IllegalMove),
        (418, "of_a_later_version", UserMistake),
        (500, "internal", FarmError),
        (507, "of_a_later_version", FarmError),
    ],
)
def test_an_error_of_the_farm_is_the_same_error_here(status: int, code: str, kind: type[FarmError]):
    farm = Farm(httpx.Response(status, json=envelope(code)))
    with pytest.raises(FarmError) as raised:
        farm.remote.get("/v1/jobs")
    assert type(raised.value) is kind
    assert raised.value.line() == "job: it is so; do that"
    assert raised.value.exit_code == (2 if status < 500 else 1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(200, text="<html>"), "is no farm: 200 without JSON"),
        (httpx.Response(404, text="<html>"), "is no farm: status 404"),
        (httpx.Response(404, json={"error": "no envelope"}), "is no farm: status 404"),
        (httpx.Response(307, headers={"location": "https://farm.test/v1/x"}), "which leads to https://farm.test/v1/x"),
    ],
    ids=["page", "other", "json", "redirect"],
)
def test_what_is_no_farm_is_said_by_its_address(answer: httpx.Response, said: str):
    farm = Farm(answer)
    with pytest.raises(InvalidSettings) as raised:
        farm.remote.get("/v1/jobs")
    assert raised.value.field == "FARM_URL"
    assert said in raised.value.line()
    assert len(farm.asked) == 1


def test_a_proxy_without_a_farm_behind_it_is_asked_again():
    farm = Farm(httpx.Response(502, text="<html>"), httpx.Response(200, json=[]))
    assert farm.remote.get("/v1/jobs") == []


def test_the_key_is_in_the_header_alone():
    farm = Farm(httpx.Response(200, json={}))
    farm.remote.post("/v1/x", {"b": 1})
    [request] = farm.asked
    assert request.headers["authorization"] == "Bearer farm_secret"
    assert json.loads(request.content) == {"b": 1}
    assert "farm_secret" not in f"{request.url}{request.content!r}{farm.remote!r}"
