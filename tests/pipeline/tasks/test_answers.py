"""The answers to held-out prompts as they are kept: all of short ones, a bounded part of long ones, in equal bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradus.pipeline.tasks.prompts import answers
from gradus.pipeline.tasks.prompts.answers import read_answers, write_answers


def test_answers_come_back_as_they_were_written(tmp_path: Path) -> None:
    given = {"math/1": (True, "4 \x1b[31m é \ud800\n"), "math/2": (False, "")}
    one, two = (write_answers(tmp_path / name / "answers.jsonl.gz", given) for name in ("one", "two"))
    assert one == two, "the bytes do not depend on when they were written"
    found = read_answers(tmp_path / "one" / "answers.jsonl.gz", one)
    assert found is not None and list(found) == ["math/1", "math/2"]
    assert {key: (each.correct, each.text) for key, each in found.items()} == given
    assert [each.name for each in (tmp_path / "one").iterdir()] == ["answers.jsonl.gz"], "nothing is left beside it"


def test_a_file_that_is_gone_or_altered_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl.gz"
    digest = write_answers(file, {"1": (True, "4")})
    assert read_answers(file, "") is None and read_answers(tmp_path / "other", digest) is None
    file.write_bytes(file.read_bytes()[:-1])
    assert read_answers(file, digest) is None


@pytest.mark.parametrize(("prompts", "kept"), [(1, 4000), (8_000, 2000), (1_000_000, 200)])
def test_the_more_prompts_the_less_is_kept_of_each(prompts: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    written = list[bytes]()
    monkeypatch.setattr(answers, "write_bytes", lambda path, content: written.append(content))
    monkeypatch.setattr(answers, "sha256", lambda path: "")
    text = "b" * 20_000 + "e"

    class Many(dict[str, tuple[bool, str]]):
        """As many prompts as it says, of which two are there."""

        def __len__(self) -> int:
            return prompts

    write_answers(Path("unused"), Many({"1": (True, text), "2": (True, "short")}))
    import gzip
    import json

    long, short = map(json.loads, gzip.decompress(written[0]).splitlines())
    assert len(long["text"]) + len(long["end"]) == kept and long["end"].endswith("e")
    assert len(long["end"]) == 3 * len(long["text"]) and long["left_out"] == 20_001 - kept
    assert short == {"id": "2", "correct": True, "text": "short"}
