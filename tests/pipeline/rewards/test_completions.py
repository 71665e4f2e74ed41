"""Hand-checked completions in the styles of many models: how often each reward is wrong, as documented."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import answers

ROOT = Path(__file__).parents[3]


def test_the_completions_are_many_and_of_many_kinds() -> None:
    rows = answers.completions()
    assert len(rows) >= 200 and len({row["family"] for row in rows}) >= 5
    assert len({(row["reference"], row["completion"]) for row in rows}) == len(rows)
    assert 0.3 < sum(row["right"] for row in rows) / len(rows) < 0.7


@pytest.mark.parametrize("name", ["exact_answer", "exact_answer, `ignore_case: true`", "numeric_answer", "math_verify"])
def test_no_wrong_answer_is_paid(name: str) -> None:
    if name == "math_verify":
        pytest.importorskip("math_verify")
    found = answers.measured(name)
    assert [row["completion"] for row in found["false positive"]] == []
    assert len(found["scored"]) > 150


def test_the_documentation_has_the_table() -> None:
    pytest.importorskip("math_verify")
    assert answers.table() in (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
