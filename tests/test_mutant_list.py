"""The list of mutants follows the code: a text that is no longer there tests nothing."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_mutants_text_is_in_its_file_once() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.mutant_list import MUTANTS

    found = {(m.file, m.text): (ROOT / m.file).read_text(encoding="utf-8").count(m.text) for m in MUTANTS}
    assert len(found) > 50
    assert {mutant: count for mutant, count in found.items() if count != 1} == {}
