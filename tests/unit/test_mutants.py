"""The seeded defects are true to the code: the text that each replaces stands there, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.mutants import ROOT, Mutant, mutants, plant


def test_there_are_twenty_defects_and_more_each_with_a_name_of_its_own() -> None:
    names = [mutant.name for mutant in mutants()]
    assert len(names) >= 20
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.name)
def test_a_defect_can_be_planted_and_leaves_python_behind(mutant: Mutant, tmp_path: Path) -> None:
    copy = tmp_path / mutant.path
    copy.parent.mkdir(parents=True)
    copy.write_text((ROOT / mutant.path).read_text(encoding="utf-8"), encoding="utf-8")
    before = plant(mutant, tmp_path)
    assert copy.read_text(encoding="utf-8") != before
    compile(copy.read_text(encoding="utf-8"), mutant.path, "exec")
    assert all((ROOT / test).is_file() for test in mutant.tests)


def test_a_defect_whose_text_is_gone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="stands 0 times"):
        plant(Mutant(name="n", path="a.py", old="y = 1", new="y = 2", tests=()), tmp_path)
