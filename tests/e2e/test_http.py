"""What the README shows over HTTP, on a standing farm with the house models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standing_farm import ROOT, StandingFarm, standing_farm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingFarm]:
    farm = standing_farm(tmp_path_factory.mktemp("http") / "home")
    del farm.env["FARM_FLEETS"]  # the usual ones
    farm.up()
    try:
        yield farm
    finally:
        farm.down()


def shown(language: str, words: str) -> str:
    """The one block of the README in `language` that has `words`."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Over HTTP")[1].split("\n## ")[0]
    [block] = [one for one in re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL) if words in one]
    return str(block)


def test_the_curl_of_the_readme_takes_a_video_on(farm: StandingFarm) -> None:
    env = {**farm.env, "OPENAI_BASE_URL": f"{farm.url}/v1", "OPENAI_API_KEY": farm.key}
    ran = subprocess.run(["bash", "-euc", shown("sh", "curl")], env=env, capture_output=True, text=True, timeout=60)
    video = json.loads(ran.stdout)
    assert (video["object"], video["model"]) == ("video", "house-video"), ran.stderr
    assert video["status"] in ("queued", "in_progress")  # a worker may have it already


def test_the_client_of_the_readme_gets_a_video_and_an_idea(farm: StandingFarm, tmp_path: Path) -> None:
    env = {**farm.env, "OPENAI_BASE_URL": f"{farm.url}/v1", "OPENAI_API_KEY": farm.key}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", shown("python", "OpenAI()")],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    status, _, currency = ran.stdout.splitlines()[0].split()
    assert (status, currency) == ("completed", "USD")
    assert (tmp_path / "boat.mp4").read_bytes()[4:8] == b"ftyp"
    assert ran.stdout.splitlines()[1].strip(), "no title came"
