"""`python -m pipelines.batch`: the same as `farm batch`, for a farm whose FARM_URL and key are set."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from cluster import settings as settings_module
from cluster.errors import FarmError, InvalidSettings
from pipelines.batch.progress import clean, display
from pipelines.batch.run import Batch, check_all_made, run


def main() -> int:
    """0 all made, 1 some were not or ours, 2 the user's mistake, 130 Ctrl-C, 143 SIGTERM."""
    stopped_by = 0

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped_by
        stopped_by = signum
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    try:
        batch = _asked()
        settings = settings_module.load()
        if not settings.url:
            raise InvalidSettings("no farm is named", field="FARM_URL", remedy="set it, and FARM_API_KEY_FILE")
        shown = display()
        try:
            found = run(batch, url=settings.url, secret=settings.secret(), display=shown)
        finally:
            shown.close()
        check_all_made(found, batch.output / "results.jsonl")
    except FarmError as error:
        return _say(error.line(), 128 + stopped_by if stopped_by else error.exit_code)
    except KeyboardInterrupt:
        return _say("stopped; nothing was submitted", 128 + stopped_by)
    return 0


def _asked() -> Batch:
    parser = argparse.ArgumentParser(prog="python -m pipelines.batch", description="Videos from a file of JSON lines.")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--show", default="")
    parser.add_argument("--name", default="")
    parser.add_argument("--skip-bad", action="store_true")
    parser.add_argument("--no-download", action="store_false", dest="download")
    parser.add_argument("--concurrency", type=int, default=8, choices=range(1, 65), metavar="N")
    return Batch(**vars(parser.parse_args()))


def _say(text: str, code: int) -> int:
    print(f"batch: {clean(text)}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
