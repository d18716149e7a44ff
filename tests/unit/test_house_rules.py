"""The rules of the house that a machine can hold: each is kept by this tree, and each sees a planted breach."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "actors", "pipelines", "serve")
TEXTS = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".in", ".json", ".sh", ".mako"}
HEAVY = {"torch", "diffusers", "transformers", "vllm"}
HEAVY_AT_THE_TOP = ("pipelines/house/", "pipelines/train", "actors/families/codecs/")  # classes built on torch's own
ENVIRONMENT = {"cluster/settings.py", "cluster/runtime.py", "actors/engine_core.py"}  # ours; Ray's; vLLM's
SHARED_BY_FAMILIES = {"checkpoint"}  # the format of a saved denoise


def sources(root: Path, *tops: str) -> Iterator[tuple[str, ast.Module]]:
    """(path below root, syntax tree) of each Python file under the named folders."""
    for top in tops:
        for path in sorted((root / top).rglob("*.py")):
            yield path.relative_to(root).as_posix(), parsed(path)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def texts(root: Path) -> Iterator[Path]:
    """Each text file of the project, without what is rendered, installed or cached."""
    for top in (*PACKAGES, "deploy", "k8s", "tests", ".ci"):
        yield from (p for p in sorted((root / top).rglob("*")) if p.suffix in TEXTS or p.parent.name == ".ci")
    yield from (p for p in sorted(root.iterdir()) if p.is_file() and (p.suffix in TEXTS or p.name == "Makefile"))


def run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that importing a module executes: not those of functions, nor those for type checkers alone."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from run_at_import(node.orelse)
            continue
        yield node
        for name in ("body", "orelse", "finalbody"):
            yield from run_at_import(getattr(node, name, []))
        for handler in getattr(node, "handlers", []):
            yield from run_at_import(handler.body)


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def packages_under_tests(root: Path) -> list[str]:
    return [p.relative_to(root).as_posix() for p in sorted((root / "tests").rglob("__init__.py"))]


def folders_without_init(root: Path) -> list[str]:
    folders = {path.rpartition("/")[0] for path, _ in sources(root, *PACKAGES) if "/migrations" not in path}
    return [folder for folder in sorted(folders) if not (root / folder / "__init__.py").exists()]


def full_inits(root: Path) -> list[str]:
    catalogs = {"actors/families/__init__.py", "pipelines/recipes/__init__.py"}
    return [
        path
        for path, tree in sources(root, *PACKAGES)
        if path.endswith("__init__.py") and tree.body and path not in catalogs
    ]


def ray_serve_under_our_name(root: Path) -> list[str]:
    found = []
    for path, tree in sources(root, *PACKAGES, "tests"):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "ray":
                found += [path for n in node.names if n.name == "serve" and n.asname != "ray_serve"]
            elif isinstance(node, ast.Import):
                found += [path for n in node.names if n.name == "ray.serve" and n.asname != "ray_serve"]
    return found


def names_that_say_nothing(root: Path) -> list[str]:
    empty = {"util", "utils", "helper", "helpers", "manager", "managers", "base", "common", "misc"}
    return [path for path, _ in sources(root, *PACKAGES, "tests") if empty & set(Path(path).stem.split("_"))]


def packages_without_readme(root: Path) -> list[str]:
    return [top for top in (*PACKAGES, "deploy", "k8s") if not (root / top / "README.md").is_file()]


def machine_paths(root: Path) -> list[str]:
    places = "|".join(("work", "opt/wheels", "opt/pypi"))
    named = re.compile(rf"(?<![\w.:/-])/(?:{places})(?:/|\b(?!\w))")
    return [p.relative_to(root).as_posix() for p in texts(root) if named.search(p.read_text(errors="replace"))]


def families_without_load(root: Path) -> list[str]:
    return [
        path
        for path, tree in sources(root, "actors/families")
        if path.count("/") == 2
        and Path(path).stem not in SHARED_BY_FAMILIES | {"__init__"}
        and not any(isinstance(node, ast.FunctionDef) and node.name == "load" for node in tree.body)
    ]


def recipes_without_plan(root: Path) -> list[str]:
    return [
        path
        for path, tree in sources(root, "pipelines/recipes")
        if not path.endswith("__init__.py")
        and not any(isinstance(node, ast.FunctionDef) and node.name == "plan" for node in tree.body)
    ]


def heavy_at_import(root: Path) -> list[str]:
    return [
        f"{path}: {name}"
        for path, tree in sources(root, *PACKAGES)
        if not path.startswith(HEAVY_AT_THE_TOP)
        for node in run_at_import(tree.body)
        for name in imported(node)
        if name.split(".")[0] in HEAVY
    ]


def readers_of_the_environment(root: Path) -> list[str]:
    return [
        path
        for path, tree in sources(root, *PACKAGES)
        if path not in ENVIRONMENT
        and any(
            isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv"}
            for node in ast.walk(tree)
        )
    ]


def lock_breaches(root: Path) -> list[str]:
    """What pyproject asks for and a lock lacks, and what a lock holds although it is to be left out."""

    def names(lines: list[str]) -> set[str]:
        plain = (re.match(r"[A-Za-z0-9._-]+", line) for line in lines if not line.startswith("#"))
        return {re.sub(r"[-_.]+", "-", match.group()).lower() for match in plain if match}

    def listed(name: str) -> set[str]:
        return names((root / "deploy/locks" / name).read_text().splitlines())

    asked = tomllib.loads((root / "pyproject.toml").read_text())
    extras = asked["project"]["optional-dependencies"]
    wanted = {extra: names(asked["project"]["dependencies"] + extras[extra]) for extra in ("cpu", "gpu")}
    wanted["test"] = names(asked["dependency-groups"]["test"])
    lacks = [
        f"{lock}.txt lacks {name}" for lock, all_ in wanted.items() for name in sorted(all_ - listed(f"{lock}.txt"))
    ]
    left_out = listed("left-out.in")
    return lacks + [f"{lock}.txt holds {name}" for lock in wanted for name in sorted(left_out & listed(f"{lock}.txt"))]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    breaches: Callable[[Path], list[str]]
    planted: dict[str, str]  # a tree that breaks the rule once
    seen: str  # how the rule names that breach
    around: dict[str, str] = field(default_factory=dict)  # what may stand beside it


LOCKS = {f"deploy/locks/{name}.txt": "" for name in ("cpu", "gpu", "test")}
ASKED = (
    '[project]\ndependencies = []\noptional-dependencies = {{cpu = ["{}"], gpu = []}}\n[dependency-groups]\ntest = []\n'
)
RULES = {
    "no tests/ folder is a package": Rule(
        breaches=packages_under_tests, planted={"tests/serve/__init__.py": ""}, seen="tests/serve/__init__.py"
    ),
    "every folder of code is a package": Rule(
        breaches=folders_without_init, planted={"actors/families/ltx.py": ""}, seen="actors/families"
    ),
    "an __init__ is empty": Rule(
        breaches=full_inits, planted={"cluster/__init__.py": "X = 1"}, seen="cluster/__init__.py"
    ),
    "Ray's serve is ray_serve": Rule(
        breaches=ray_serve_under_our_name,
        planted={"serve/app.py": "from ray import serve"},
        around={"serve/deployments.py": "from ray import serve as ray_serve\nimport ray.serve as ray_serve"},
        seen="serve/app.py",
    ),
    "a module is a noun of the trade": Rule(
        breaches=names_that_say_nothing,
        planted={"cluster/job_utils.py": ""},
        around={"cluster/database.py": ""},
        seen="cluster/job_utils.py",
    ),
    "every package has a README": Rule(
        breaches=packages_without_readme,
        planted={f"{top}/README.md": "" for top in (*PACKAGES, "deploy")},
        seen="k8s",
    ),
    "no file names a machine": Rule(
        breaches=machine_paths,
        planted={"deploy/README.md": "wheels lie in /" + "opt/wheels"},
        around={"serve/README.md": "https://example.org/work/1, a/work/b and /workers"},
        seen="deploy/README.md",
    ),
    "every family has load": Rule(
        breaches=families_without_load,
        planted={"actors/families/wan.py": "class Wan:\n    def load(self): ..."},
        around={"actors/families/ltx.py": "def load(): ...", "actors/families/codecs/paper.py": ""},
        seen="actors/families/wan.py",
    ),
    "every recipe has plan": Rule(
        breaches=recipes_without_plan,
        planted={"pipelines/recipes/reel.py": ""},
        around={"pipelines/recipes/__init__.py": "", "pipelines/recipes/clip.py": "def plan(): ..."},
        seen="pipelines/recipes/reel.py",
    ),
    "models are imported when they are needed": Rule(
        breaches=heavy_at_import,
        planted={"actors/writer.py": "try:\n    import vllm.v1\nexcept ImportError:\n    pass"},
        around={
            "actors/renderer.py": "if TYPE_CHECKING:\n    import torch\ndef f():\n    import torch",
            "pipelines/house/draw.py": "import torch",
        },
        seen="actors/writer.py: vllm.v1",
    ),
    "settings alone read the environment": Rule(
        breaches=readers_of_the_environment,
        planted={"actors/fleet.py": "import os\nX = os.environ.get('FARM_HOME')"},
        around={"cluster/settings.py": "import os\nX = os.environ"},
        seen="actors/fleet.py",
    ),
    "locks hold what is asked for": Rule(
        breaches=lock_breaches,
        planted=LOCKS | {"pyproject.toml": ASKED.format("Types_PyYAML[x]>=6"), "deploy/locks/left-out.in": "# none\n"},
        seen="cpu.txt lacks types-pyyaml",
    ),
    "locks leave out what breaks": Rule(
        breaches=lock_breaches,
        planted=LOCKS
        | {
            "pyproject.toml": ASKED.format("torch>=2"),
            "deploy/locks/cpu.txt": "torch==2.13.0+cpu\ntorchvision==0.28.0  # via vllm",
            "deploy/locks/left-out.in": "# never\ntorchvision\n",
        },
        seen="cpu.txt holds torchvision",
    ),
}


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_house_keeps_its_rules(rule: Rule):
    assert rule.breaches(ROOT) == []


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_each_rule_sees_its_breach_and_nothing_else(rule: Rule, tmp_path: Path):
    plant(tmp_path, rule.around | rule.planted)
    assert rule.breaches(tmp_path) == [rule.seen]


def foreign_owners_of_our_names() -> set[str]:
    installed = importlib.metadata.packages_distributions()
    return {owner for package in PACKAGES for owner in installed.get(package, [])} - {"reelfarm"}


def test_no_installed_distribution_ships_a_package_of_our_names():
    assert foreign_owners_of_our_names() == set()


def test_a_distribution_that_ships_one_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plant(
        tmp_path,
        {"other-1.dist-info/METADATA": "Name: other\nVersion: 1\n", "other-1.dist-info/RECORD": "serve/app.py,,\n"},
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert foreign_owners_of_our_names() == {"other"}


def test_what_a_process_has_imported_changes_no_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def drawn() -> list[int]:
        seen: list[int] = []

        @settings(derandomize=True, max_examples=100)
        @given(st.integers())
        def draw(n: int) -> None:
            seen.append(n)

        draw()
        return seen

    before = drawn()
    plant(tmp_path, {"of_numbers.py": f"NUMBERS = {list(range(10**6, 10**6 + 900))}"})
    module = ModuleType("of_numbers")
    module.__file__ = str(tmp_path / "of_numbers.py")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert drawn() == before
