"""What a part of the check finds: figures and verdicts, written line by line as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import table
from benchmarks.workload import Device

FILE = "findings.jsonl"


@dataclass(frozen=True)
class Setup:
    """What a part works with."""

    device: Device
    tiny: bool
    """Small enough for the tests."""
    out: Path
    """Where results go."""
    scratch: Path
    """For runs and other large files, which are removed at the end."""
    seconds: float
    """How long the part may take; it ends earlier by itself where it can."""


class Findings:
    """The findings of one part; each is in the file as soon as it is known, so that a kill loses none."""

    def __init__(self, part: str, out: Path):
        self.part, self.path, self.began = part, out / FILE, time.monotonic()

    def add(self, what: str, value: Any, unit: str = "", ok: bool | None = None, limit: float | None = None) -> None:
        """A figure or a fact; ``ok`` is the verdict where there is one, ``limit`` what decided it."""
        line = {"part": self.part, "what": what, "value": value, "unit": unit, "ok": ok, "limit": limit}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
        print(f"{self.part}: {shown(line)}", flush=True)

    def below(self, what: str, value: float, limit: float, unit: str = "") -> None:
        """A difference that must be at most ``limit``; a value that is not a number is never."""
        self.add(what, value, unit, value <= limit, limit)

    @property
    def seconds(self) -> float:
        """Since the part began."""
        return time.monotonic() - self.began


def of_part(out: Path, part: str) -> list[dict[str, Any]]:
    """All findings of a part so far."""
    path = out / FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [found for line in lines if (found := json.loads(line))["part"] == part]


def exit_code(results: Sequence[dict[str, Any]]) -> int:
    """0 where all is well, 1 where a part did not end or a verdict is bad, 2 where there is no device to check."""
    if results[0]["part"] == "environment" and results[0]["status"] != "done":
        return 2
    return int(any(r["status"] != "done" or any(f["ok"] is False for f in r["findings"]) for r in results))


def number(value: Any) -> str:
    """A figure with the digits that matter.

    >>> [number(v) for v in (3.14159, 0.00001234, 12345.6, 7, True, "llama")]
    ['3.14', '1.23e-05', '12,346', '7', 'yes', 'llama']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value and abs(value) < 0.001:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def shown(finding: dict[str, Any]) -> str:
    """A finding in a line."""
    verdict = {None: "", True: "  ok", False: "  NOT OK"}[finding["ok"]]
    limit = f" (at most {number(finding['limit'])})" if finding["limit"] is not None else ""
    return f"{finding['what']}: {number(finding['value'])} {finding['unit']}".rstrip() + limit + verdict


def report(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a table of the parts, then one of all findings."""
    parts = [[r["part"], r["status"], f"{r['seconds']:.0f} s", r["error"] or ""] for r in results]
    rows = []
    for result in results:
        for f in result["findings"]:
            verdict = {None: "", True: "ok", False: "**not ok**"}[f["ok"]]
            limit = "" if f["limit"] is None else number(f["limit"])
            rows.append([f["part"], f["what"], number(f["value"]), f["unit"], limit, verdict])
    first = table(["part", "ended", "time", "error"], parts)
    return f"{first}\n\n{table(['part', 'what', 'found', 'unit', 'at most', ''], rows)}\n"
