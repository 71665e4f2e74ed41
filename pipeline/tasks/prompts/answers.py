"""The answers that a measured policy gave to the held-out prompts, kept so that two policies can be laid side by side.

One compressed file beside the outcomes of each evaluation, with a line of JSON for each prompt in the order in which
they were asked. Long answers are kept in part, and the more prompts there are, the less is kept of each, so that the
file has a bound. Equal answers give equal bytes.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gradus.pipeline.common.files import sha256, write_bytes

ANSWERS_FILE = "answers.jsonl.gz"
"""The name of the file: in a stage's folder, and, for the policy before any stage, in the run's."""
LONGEST, SHORTEST = 4_000, 200
"""Characters of an answer that are kept at most, and at least where there are many prompts."""
TOTAL = 16_000_000
"""Characters of all answers of an evaluation that are kept, as long as each has its shortest part."""


@dataclass(frozen=True)
class Answer:
    """A completion, and whether it is correct."""

    correct: bool
    text: str
    """All of it, or its beginning."""
    left_out: int = 0
    """Characters between ``text`` and ``end`` that were not kept."""
    end: str = ""

    def shown(self) -> str:
        """The text, with a mark where something was left out."""
        return f"{self.text} [... {self.left_out:,} characters ...] {self.end}" if self.left_out else self.text

    def shortened(self, limit: int) -> Answer:
        r"""At most so many characters of it, three of four from its end, where the result stands.

        >>> Answer(True, "0123456789").shortened(8).shown()
        '01 [... 2 characters ...] 456789'
        """
        if len(self.text) + len(self.end) <= limit:
            return self
        begin, end = self.text[: limit // 4], (self.text + self.end)[-(limit - limit // 4) :]
        gone = len(self.text) + self.left_out + len(self.end) - len(begin) - len(end)
        return Answer(self.correct, begin, gone, end)


def write_answers(path: Path, answers: Mapping[str, tuple[bool, str]]) -> str:
    """Replace the file by these answers, of a prompt's id; returns its hash. Raises: OSError."""
    limit = max(SHORTEST, min(LONGEST, TOTAL // max(1, len(answers))))
    lines = []
    for key, (correct, text) in answers.items():
        kept = Answer(correct, text).shortened(limit)
        more = {"left_out": kept.left_out, "end": kept.end} if kept.left_out else {}
        lines.append(json.dumps({"id": key, "correct": correct, "text": kept.text, **more}))
    write_bytes(path, gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
    return sha256(path)


def read_answers(path: Path, digest: str) -> dict[str, Answer] | None:
    """id of a prompt -> its answer; None where the file is gone, or is not the one with this hash."""
    if not path.is_file() or sha256(path) != digest:
        return None
    lines = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    return {line.pop("id"): Answer(**line) for line in lines}
