"""`gradus rollouts`: what a stage sampled, as a person and a program read it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from trained_chain import Chain

from gradus.flows.screen.rollouts import print_rollouts
from gradus.flows.screen.text import Screen
from gradus.pipeline.runs.sampled.record import ROLLOUTS_FILE
from gradus.pipeline.tasks.prompts.step_lines import StepLines

pytestmark = pytest.mark.usefixtures("quiet_process", "untracked")


def completion(text: str, **fields: Any) -> dict[str, Any]:
    scores = {"components": {"exact_answer": 1.0}, "truncated": False, "correct": True}
    return {"text": text, "tokens": 9, "reward": 1.0, "weight": 0.5, "rank": 1} | scores | fields


WRONG = {"reward": 0.0, "weight": -0.5, "rank": 2, "correct": False, "components": {"exact_answer": 0.0}}


def group(*completions: dict[str, Any], **fields: Any) -> dict[str, Any]:
    given = {"step": 20, "group": 0, "task": "", "prompt": "0a1b", "question": "5 + 6 + 2 =", "answer": "13"}
    counted = {"ranking": ["reward"], "size": len(completions), "correct": 1, "mean_reward": 0.5}
    return given | counted | {"completions": [*completions]} | fields


def keep(chain: Chain, index: int, *groups: dict[str, Any]) -> None:
    """Let a stage of the run have kept these groups and no others."""
    file = chain.run().stage_dir(index) / ROLLOUTS_FILE
    file.unlink(missing_ok=True)
    lines = StepLines(file)
    for each in groups:
        lines.append(each)
    lines.sync()


def on_terminal(*groups: dict[str, Any], width: int = 80, equations: bool = True) -> str:
    """What a terminal of this width gets."""
    file = io.StringIO()
    shown = Screen(file=file, force_terminal=True, color_system="standard", width=width, legacy_windows=False)
    found = {"run": "r", "stage": "s", "steps": [1, 20], "equations": equations, "groups": [*groups]}
    print_rollouts(found, shown)
    return file.getvalue()


def _stripped(text: str) -> str:
    from rich.text import Text

    return Text.from_ansi(text).plain


def test_a_trained_run_shows_its_last_groups(chain: Chain) -> None:
    said = chain.tell("rollouts", "chain")
    assert said.startswith("chain, gfpo, step 1; groups are kept of steps 1")
    assert "group 1 of 2: prompt " in said and "  answer:\n    | " in said and "rank 1, reward " in said
    assert "\x1b" not in said, "a pipe gets no colours"
    found = json.loads(chain.tell("rollouts", "chain", "--stage", "dapo", "--json"))
    assert (found["stage"], len(found["groups"]), found["groups"][0]["size"]) == ("dapo", 2, 2)
    questions = {each["question"] for each in found["groups"]}
    assert all("arithmetic problem" in question for question in questions)


def test_right_and_wrong_are_told_with_what_was_made_of_them(chain: Chain) -> None:
    wrong = completion("5+6=12; 12+2=14; answer: 14", truncated=True, **WRONG)
    right = completion("5+6=11; 11+2=13; answer: 13")
    unscored = completion("?", reward=None, rank=None, weight=0.0, correct=False, components={"exact_answer": None})
    keep(chain, 2, group(wrong, right, right, unscored, size=6, task="sums"))
    said = chain.tell("rollouts", "chain").splitlines()
    assert said[2] == "group 1 of 1: task sums, prompt 0a1b, 1 of 6 right, mean reward 0.5"
    assert said[3:7] == ["  question:", "    | 5 + 6 + 2 =", "  answer:", "    | 13"]
    assert said[7] == "  right x 2: rank 1, reward 1, weight +0.5, exact_answer 1, 9 tokens"
    assert said[8] == "    | 5+6=11; 11+2=13; answer: 13"
    assert said[9] == "  wrong: rank 2, reward 0, weight -0.5, exact_answer 0, 9 tokens, truncated"
    assert said[10:12] == ["    | 5+6=12; 12+2=14; answer: 14", "      broke at 5+6=12 (false)"]
    assert said[12] == "  not scored: no rank, reward none, weight 0, exact_answer none, 9 tokens"
    assert said[14].startswith("  2 further completions were left out")


def test_colours_mark_right_wrong_and_the_broken_step() -> None:
    wrong = completion("5+6=12; so 12+2=14", **WRONG)
    said = on_terminal(group(wrong, completion("5+6=11; 11+2=13")))
    assert "\x1b[1;32mright\x1b[0m" in said and "\x1b[1;31mwrong\x1b[0m" in said
    assert "\x1b[4;31m5+6=12\x1b[0m; so 12+2=14" in said


def test_what_follows_is_only_asked_where_the_run_asks_it_and_all_of_the_text_is_there() -> None:
    text = "7+7=14; 5+6=12"
    strict = _stripped(on_terminal(group(completion(text))))
    assert "broke at 7+7=14 (does not follow); 5+6=12 (false)" in strict
    for shown in (
        on_terminal(group(completion(text)), equations=False),
        on_terminal(group(completion(text, cut=True))),
    ):
        assert "broke at 5+6=12 (false)" in _stripped(shown) and "follow" not in shown
    assert "broke" not in on_terminal(group(completion("no equation at all")))


EVIL = (
    "\x1b[2J\x1b]0;title\x07[bold red]x[/] :smile: \u202egroup 9 of 9\r\n<b>html</b>\x9b1A\x00\tend\n\n  right: rank 1"
)


def test_nothing_that_a_model_wrote_controls_the_terminal(chain: Chain) -> None:
    keep(chain, 2, group(completion(EVIL), question=EVIL, answer=EVIL, task=EVIL))
    said = chain.tell("rollouts", "chain")
    shown = _stripped(on_terminal(group(completion(EVIL), question=EVIL, answer=EVIL)))
    for text in (said, shown):
        assert not {"\x1b", "\x07", "\r", "\x9b", "\x00", "\u202e"} & {*text}
        assert r"\x1b[2J\x1b]0;title\x07[bold red]x[/] :smile: \u202egroup 9 of 9\r" in text.replace("\n    | ", "")
        assert "    | <b>html</b>" in text
        assert not any(line.startswith("  right: rank 1") and "tokens" not in line for line in text.splitlines())
    assert "\x1b[2J" not in on_terminal(group(completion(EVIL)))


@pytest.mark.parametrize("width", [80, 40])
def test_a_narrow_terminal_wraps_behind_the_bar(width: int) -> None:
    long = "word " * 60 + "x" * 200
    scores = {"components": dict.fromkeys(("exact_answer", "equation_steps", "a_long_name_of_a_reward"), 0.5)}
    said = _stripped(on_terminal(group(completion(long, **scores), question=long), width=width)).splitlines()
    assert all(len(line) <= width for line in said)
    texts = [line for line in said if line.startswith("    | ")]
    assert len(texts) > 8
    assert "".join(line[6:] for line in texts).replace(" ", "").count("word") == 120


def test_a_pipe_gets_whole_lines(chain: Chain) -> None:
    keep(chain, 2, group(completion("word " * 60 + "\nsecond")))
    said = chain.tell("rollouts", "chain")
    assert f"    | {'word ' * 60}".rstrip() in said and "\n    | second\n" in said


def test_groups_of_several_steps_have_their_steps(chain: Chain) -> None:
    better = group(completion("a"), mean_reward=0.9, step=40)
    keep(chain, 2, group(completion("b"), mean_reward=0.1), better)
    said = chain.tell("rollouts", "chain", "--best", "1", "--worst", "1")
    assert "chain, gfpo, 2 steps; groups are kept of steps 20, 40" in said
    assert said.index("group 1 of 2: step 40, ") < said.index("group 2 of 2: step 20, ")
    assert "step 20" in chain.tell("rollouts", "chain", "--step", "20")
    assert "one of 20, 40" in chain.tell("rollouts", "chain", "--step", "30", code=2)


def test_stages_without_samples_say_so(chain: Chain) -> None:
    said = chain.tell("rollouts", "chain", "--stage", "sft", code=2)
    assert "no sampled groups of the stage `sft`" in said and "learns from demonstrations" in said
    for index in (1, 2):
        (chain.run().stage_dir(index) / ROLLOUTS_FILE).unlink()
    said = chain.tell("rollouts", "chain", code=2)
    assert "there are no sampled groups of the run 'chain' to show" in said and "a version that kept none" in said
    assert "there is no run called 'nobody'" in chain.tell("rollouts", "nobody", code=2)


def test_it_answers_without_mlflow_and_torch(chain: Chain) -> None:
    code, output, errors = chain.finished("rollouts", "chain", "--runs", str(chain.runs), PYTHONPROFILEIMPORTTIME="1")
    assert code == 0 and "chain, gfpo, step 1" in output
    imported = {line.rsplit("|", 1)[-1].strip() for line in errors.splitlines()}
    assert not {"torch", "mlflow", "prefect", "transformers"} & imported and "typer" in imported


def test_paths_are_those_of_the_run_given(chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "runs").rename(tmp_path / "moved")
    said = chain("rollouts", "chain", "--runs", str(tmp_path / "moved")).stdout
    assert said.startswith("chain, gfpo")
