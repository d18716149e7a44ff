"""The import contracts of pyproject.toml: this tree keeps them, and each sees a planted breach."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "actors", "pipelines", "serve")


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def contracts_kept(root: Path) -> subprocess.CompletedProcess[str]:
    linter = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", linter, "--no-logo", "--no-cache"], cwd=root, capture_output=True, text=True, timeout=120
    )


def test_imports_point_down_and_foreign_libraries_stay_where_they_belong():
    done = contracts_kept(ROOT)
    assert done.returncode == 0, done.stdout


CLEAN = {
    **{f"{top}/__init__.py": "" for top in (*PACKAGES, "cluster/ledger", "pipelines/house")},
    "actors/contract.py": "",
    "actors/dispatcher.py": "",
    "cluster/ledger/schema.py": "import sqlalchemy",
    "cluster/runtime.py": "def start():\n    import ray",
    "cluster/store.py": "import boto3",
    "pipelines/house/draw.py": "import torch",
    "serve/local.py": "import actors.dispatcher",
}
BREACHES = {
    "Imports point down the stack": ("cluster/states.py", "import actors.contract"),
    "Pipelines know models and orders, not who does the work": ("pipelines/script.py", "import actors.dispatcher"),
    "Of serve, only composition roots know who does the work": ("serve/webhooks.py", "import actors.dispatcher"),
    "Ray is imported in few named modules": ("actors/worker.py", "import ray"),
    "Models are imported by families, engines and training alone": (
        "actors/catalog.py",
        "import torch.nn",
    ),
    "S3 is spoken in the store alone": ("pipelines/conform.py", "import boto3.session"),
    "SQL is spoken in the ledger alone": ("actors/limits.py", "import sqlalchemy.exc"),
}


def test_each_contract_sees_its_breach_and_no_other(tmp_path: Path):
    plant(tmp_path, CLEAN)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = contracts_kept(tmp_path)
    assert done.returncode == 0, done.stdout
    plant(tmp_path, dict(BREACHES.values()))
    done = contracts_kept(tmp_path)
    assert done.returncode == 1
    assert f"Contracts: 0 kept, {len(BREACHES)} broken." in done.stdout, done.stdout
    for module, _ in BREACHES.values():
        name = module.removesuffix(".py").replace("/", ".")
        assert done.stdout.count(f" {name} -> ") == 1, done.stdout
