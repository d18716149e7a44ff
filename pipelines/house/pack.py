"""Puts a trained denoiser and its refined codec together: python -m pipelines.house.pack --denoiser DIR --codec DIR

The result is a model directory that the family `ltx` loads, with the sha256 of each of its files in `farm.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

from pipelines.house.evaluate import WEIGHTS

_KEPT = "README.md"  # the model card is written by hand


def pack(denoiser: Path, codec: Path, out: Path) -> int:
    """Copies the parts to `out`, replacing what was there but the model card. Returns the size in bytes."""
    for part in ("transformer", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(out / part, ignore_errors=True)
        shutil.copytree(denoiser / part, out / part)
    shutil.rmtree(out / "vae", ignore_errors=True)
    shutil.copytree(codec, out / "vae")
    shutil.copy(denoiser / "model_index.json", out / "model_index.json")
    departures = json.loads((denoiser / "farm.json").read_text(encoding="utf-8"))
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in {_KEPT, "farm.json"}]
    departures["sha256"] = {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    (out / "farm.json").write_text(json.dumps(departures, indent=2) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--denoiser", type=Path, required=True, help="what `train` wrote to OUT/weights")
    parser.add_argument("--codec", type=Path, required=True, help="what `refine` wrote")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{pack(args.denoiser, args.codec, args.out) / 1e6:.1f} MB in {args.out}")


if __name__ == "__main__":
    main()
