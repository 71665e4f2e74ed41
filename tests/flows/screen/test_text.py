"""Nothing that is printed can control the terminal, wherever its text comes from, and no locale ends a command."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from command_line import Gradus
from rich.progress import Progress, TextColumn
from rich.table import Table

from gradus.flows import launch
from gradus.flows.screen.text import Screen, line_printer, print_table
from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.shown import visible
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.creation import create_policy

pytestmark = pytest.mark.usefixtures("quiet_process")

FOREIGN = "a\x1b[2J\x07\x08\r\x9b1A\x7f\u202eb\u2066\u2028\U000e0041\ud800c"
"""Clears the screen, rings, overwrites, moves, turns the direction of writing, and hides text; and half a character."""
SHOWN = r"a\x1b[2J\x07\x08\r\x9b1A\x7f\u202eb\u2066\u2028\U000e0041\ud800c"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\U000e0000-\U000e007f\ud800-\udfff]")


def test_control_characters_are_shown_and_text_is_left_alone() -> None:
    assert visible(FOREIGN) == SHOWN == visible(SHOWN)
    for text in ("7 * 8 = 56\n\tanswer", "é 漢 → 👩\u200d👧 x\u200cy \xa0"):
        assert visible(text) == text


def test_every_way_of_printing_on_the_screen() -> None:
    screen = Screen(file=io.StringIO(), width=200, color_system=None)
    screen.print(FOREIGN, markup=False)
    screen.print("[bold]mark[/bold] up", FOREIGN, style="red")
    line_printer(screen)(FOREIGN)
    print_table(screen, ["name", "state"], [[FOREIGN, "done"], ["b", FOREIGN]])
    table = Table(FOREIGN, title=FOREIGN)
    table.add_row(FOREIGN)
    screen.print(table)
    with Progress(TextColumn("{task.description}", markup=False), console=screen) as progress:
        progress.add_task(FOREIGN)
    said = screen.file.getvalue()  # type: ignore[attr-defined]
    assert not CONTROLS.findall(said) and said.count(r"\x1b[2") >= 8 and "mark up" in said
    coloured = Screen(file=io.StringIO(), force_terminal=True, color_system="standard", legacy_windows=False)
    coloured.print(f"[bold]x[/bold]{FOREIGN}")
    assert "\x1b[1mx\x1b[0m" in coloured.file.getvalue(), "its own styles remain"  # type: ignore[attr-defined]


def test_every_message_and_the_names_of_runs(gradus: Gradus, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = FOREIGN.replace("\ud800", "")
    runs = ["--runs", str(gradus.runs)]
    assert str(UserError(FOREIGN, where=FOREIGN, got=FOREIGN, expected=FOREIGN, fix=FOREIGN)).count(SHOWN) == 5
    odd = gradus.runs / "a\x1b[2J\x9b1A"
    odd.mkdir(parents=True)
    (odd / "run.json").write_text('{"created": "\\u001b[2J"}', encoding="utf-8")
    said = [
        gradus("check", str(gradus.config), "--set", f"k{foreign.replace('=', '')}=1", code=2).stderr,
        gradus("check", foreign, code=2).stderr,
        gradus("status", *runs).stdout,
        gradus("status", foreign, *runs, code=2).stderr,
        gradus("sample", foreign, "1", *runs, code=2).stderr,
        gradus("stages", foreign, code=2).stderr,
    ]
    for error, code in ((StageFailed(foreign), 1), (ZeroDivisionError(foreign), 1), (UserError(foreign), 2)):

        def failing(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(launch, "launch", failing)
        said.append(gradus("run", str(gradus.config), *runs, code=code).stderr)
    for text in said:
        assert not CONTROLS.findall(text) and r"\x1b[2J" in text, text


def test_completions_that_would_clear_the_screen(gradus: Gradus) -> None:
    """A policy whose every token is of an escape sequence: it was trained on nothing else."""
    architecture = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1}
    policy = create_policy(PolicyConfig(architecture=architecture, device="cpu"), ["\x1b[2J\x9b", "\x1b]0;"], 0)
    policy.save(gradus.folder / "model")
    said = gradus("sample", str(gradus.folder / "model"), "\x1b[2J", "-n", "4", "--max-tokens", "40").stdout
    assert r"\x1b" in said and not CONTROLS.findall(said)


UNICODE = """\
name: unicode
policy:
  architecture: {model_type: gpt2, n_embd: 8, n_head: 2, n_layer: 1}
  plain_template: "{question} → "
task: {source: file, path: rows.jsonl, heldout: 8}
sampling: {max_tokens: 4}
rewards: [{reward: exact_answer}]
stages: [{stage: dapo, steps: 1, prompts_per_step: 2, group_size: 2}]
"""


def test_a_locale_without_the_characters_ends_nothing(gradus: Gradus) -> None:
    (gradus.folder / "tiny.yaml").write_text(UNICODE, encoding="utf-8")
    rows = "".join(f'{{"question": "{number} ä → 漢", "answer": "{number}"}}\n' for number in range(40))
    (gradus.folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    code, said, errors = gradus.finished("run", "tiny.yaml", "--engine", "none", **ascii_only)
    assert (code, errors) == (0, "") and r"\u2192 \u6f22" in said
    stored = (gradus.folder / "runs" / "unicode" / "config.yaml").read_text(encoding="utf-8")
    assert "{question} → " in stored
    code, said, errors = gradus.finished("sample", "unicode", "3 ä → 漢", **ascii_only)
    assert (code, errors) == (0, ""), said


def test_a_prompt_that_is_no_text_is_refused(gradus: Gradus, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    said = gradus("sample", str(tmp_path / "folder"), "1\ud800", code=2).stderr
    assert "no Unicode text" in said and r"1\ud800" in said
