"""`gradus diff`: two runs whose answers are known, their stages, forks, older folders, and what cannot be compared."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import Gradus
from parity_runs import parity_run, parity_task, write_parity
from small_pipeline import STAGE_CONFIGS, launch, pipeline

from gradus.flows.diff.diff import diff
from gradus.flows.diff.screen import print_diff
from gradus.flows.diff.states import State, find_state
from gradus.flows.screen.text import Screen
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import sha256
from gradus.pipeline.common.records import read_sealed, write_sealed
from gradus.pipeline.runs.fork import fork
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.run_records import answers_of
from gradus.pipeline.runs.verify import verify
from gradus.pipeline.tasks.prompts.answers import ANSWERS_FILE

EVEN, ODD = 10, 6
"""How many of the 16 held-out numbers are which."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that nothing changes: ``zero`` says 0 to everything, ``one`` says 1."""
    folder = tmp_path_factory.mktemp("parity")
    parity_run(folder, "zero")
    parity_run(folder, "one", "one", lr=0.03)
    return folder


@pytest.fixture
def gradus(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gradus:
    """The command in a folder with copies of them."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    shutil.copy(trained / "task.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return Gradus(tmp_path)


def told(gradus: Gradus, *words: str) -> dict[str, Any]:
    return json.loads(gradus("diff", *words, "--json").stdout)


def refused(gradus: Gradus, *words: str) -> str:
    return gradus("diff", *words, code=2).stderr


def test_two_runs(gradus: Gradus) -> None:
    found = told(gradus, "zero", "one")
    assert found["a"] | {"checkpoint": "", "content": ""} == {
        "name": "zero:dapo", "run": "zero", "stage": "dapo", "step": 1, "checkpoint": "", "content": "",
        "accuracy": EVEN / 16,
    }  # fmt: skip
    assert found["options"] == [
        {"option": "task.columns.demonstration", "a": "zero", "b": "one", "decides": True},
        {"option": "stages.sft.lr", "a": 0.02, "b": 0.03, "decides": True},
    ]
    (row,) = found["accuracies"]
    assert (row["task"], row["prompts"], row["only_a"], row["only_b"]) == ("", 16, EVEN, ODD)
    assert (row["a"], row["b"], row["difference"]) == (0.625, 0.375, -0.25)
    # P(B >= 10 of 16) = (8008 + 4368 + 1820 + 560 + 120 + 16 + 1) / 65536; twice that
    assert row["p"] == pytest.approx(2 * 14893 / 65536)
    assert found["only_a"]["count"] == len(found["only_a"]["prompts"]) == EVEN
    assert found["only_b"]["count"] == len(found["only_b"]["prompts"]) == ODD and not found["notes"]
    for side, parity in (("only_a", "0"), ("only_b", "1")):
        for prompt in found[side]["prompts"]:
            assert prompt["answer"] == parity == str(int(prompt["question"].partition("?")[0]) % 2)
            assert (prompt["a"], prompt["b"]) == ("answer: 0", "answer: 1") and re.fullmatch(
                "[0-9a-f]{16}", prompt["id"]
            )


def test_the_terminal_shows_a_bounded_part_in_80_columns(gradus: Gradus) -> None:
    said = gradus("diff", "zero", "one", "--limit", "2").stdout
    assert max(map(len, said.splitlines())) <= 80
    assert "\x1b" not in said and r"\x1b[31m" in said, "what a data set holds does not control the terminal"
    assert f"A answers {EVEN} prompts that B does not; the first 2:" in said and said.count("A, right") == 2
    assert f"B answers {ODD} prompts that A does not; the first 2:" in said and said.count("A, wrong") == 2
    assert re.search(r"16 +0\.625 +0\.375 +-0\.250 +-0\.\d+ to 0\.\d+ +10 +6 +0\.454", said)
    assert re.search(r"stages\.sft\.lr +0\.02 +0\.03", said)
    none = gradus("diff", "zero", "one", "--limit", "0").stdout
    assert f"A answers {EVEN} prompts that B does not." in none and "answer: 0" not in none


def test_the_page_is_whole_and_runs_nothing(gradus: Gradus) -> None:
    said = gradus("diff", "zero", "one", "--html", "new/diff.html").stdout
    page = Path("new/diff.html").read_text()
    assert "the page is new/diff.html" in said
    assert page.count("answer: 0") == EVEN + ODD, "more than the terminal shows"
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "\x1b" not in page
    assert "http" not in page and "src=" not in page, "it loads nothing"
    Path("file").write_text("")
    assert "the page cannot be written" in refused(gradus, "zero", "one", "--html", "file/diff.html")


def test_stages_of_one_run(gradus: Gradus) -> None:
    found = told(gradus, "zero:start", "zero:sft")
    assert [(row["option"], row["a"], row["b"]["steps"]) for row in found["options"]] == [("stages.sft", None, 20)]
    assert (found["a"]["accuracy"], found["b"]["accuracy"]) == (0, EVEN / 16)
    assert (found["only_a"]["count"], found["only_b"]["count"]) == (0, EVEN)
    assert all(prompt["a"] not in (None, "answer: 0") for prompt in found["only_b"]["prompts"])
    said = gradus("diff", "zero:sft", "zero").stdout
    assert re.search(r"stages\.dapo +- +a stage: dapo, manual, 1 step\b", said)
    handed = Path(str((RunFolder("runs/zero", STAGE_CONFIGS).result(0) or {})["checkpoint"]))
    assert told(gradus, str(handed), "runs/one")["a"]["name"] == "zero:sft", "checkpoints and runs go by folder, too"


def test_what_decides_only_how_is_marked(gradus: Gradus, trained: Path, tmp_path: Path) -> None:
    parity_run(tmp_path, "kept", checkpoints={"keep": 5}, tracking={"samples": 3, "histogram_every": 1})
    options = {row["option"]: row["decides"] for row in told(gradus, "zero", "kept")["options"]}
    assert options == {"tracking.samples": False, "checkpoints.keep": False}
    assert "both have the same weights" in told(gradus, "zero", "kept")["notes"]
    assert re.search(r"checkpoints\.keep \(how\) +2 +5", gradus("diff", "zero", "kept").stdout)


def test_other_rules_for_what_is_correct_are_told(gradus: Gradus, tmp_path: Path) -> None:
    rewards = [{"reward": "exact_answer", "name": "exact"}, {"reward": "length", "params": {"max": 9, "falloff": 9}}]
    parity_run(tmp_path, "same", rewards=rewards, evaluation={"reward": "exact"})
    assert "what counts as correct" not in str(told(gradus, "zero", "same")["notes"])
    parity_run(tmp_path, "short", rewards=rewards, evaluation={"reward": "length"})
    (note,) = [note for note in told(gradus, "zero", "short")["notes"] if "what counts as correct" in note]
    assert note == "what counts as correct is not the same in both, by their rewards or `evaluation`"


def test_held_out_sets_that_differ_are_compared_where_they_meet(gradus: Gradus, tmp_path: Path) -> None:
    parity_run(tmp_path, "more", "one", lr=0.03, task=parity_task("one", heldout=24))
    found = told(gradus, "zero", "more")
    assert found["prompts"] == {"a": 16, "b": 24, "both": 16}
    assert found["accuracies"][0]["prompts"] == 16
    asked = "zero:dapo was asked 16 held-out prompts and more:dapo 24; only the 16 of both are compared"
    assert found["notes"] == [asked] and asked in gradus("diff", "zero", "more").stdout


def test_a_fork_shares_what_was_answered(gradus: Gradus) -> None:
    origin = RunFolder("runs/zero", STAGE_CONFIGS)
    fork(origin, 1, origin.config, Path("runs/forked"))
    found = told(gradus, "forked:sft", "one:sft")
    assert found["only_a"]["prompts"][0]["a"] == "answer: 0" and len(found["only_a"]["prompts"]) == EVEN
    assert told(gradus, "forked:start", "one")["only_b"]["prompts"][0]["a"]
    same = told(gradus, "zero:sft", "forked:sft")
    assert same["notes"] == ["both have the same weights"] and same["accuracies"][0]["p"] == 1
    assert told(gradus, "forked", "one")["notes"] == [
        "forked is not complete: its newest stage that is done, sft, is compared"
    ]


def test_a_stage_that_is_measured_again_leaves_the_same_bytes(gradus: Gradus) -> None:
    run = RunFolder("runs/zero", STAGE_CONFIGS)
    file, digest = answers_of(run, 1)
    file.unlink()
    (run.stage_dir(1) / "result.json").unlink()
    again = parity_run(Path.cwd(), "zero")
    assert answers_of(again, 1) == (file, digest) and sha256(file) == digest


def as_before(run: RunFolder) -> RunFolder:
    """Make the run what an earlier version left: without answers."""
    for file in (run.path / "start.json", *run.path.glob("stages/*/result.json")):
        fields = read_sealed(file) or {}
        del fields["answers"]
        write_sealed(file, fields)
        (file.parent / ANSWERS_FILE).unlink()
    return RunFolder(run.path, STAGE_CONFIGS)


def test_a_run_of_an_earlier_version(gradus: Gradus) -> None:
    run = as_before(RunFolder("runs/zero", STAGE_CONFIGS))
    found = told(gradus, "zero", "one")
    assert found["accuracies"][0]["only_a"] == EVEN
    assert {(prompt["a"], prompt["b"]) for prompt in found["only_a"]["prompts"]} == {(None, "answer: 1")}
    assert "zero:dapo: its answers were not stored" in found["notes"][0]
    assert "(not stored)" in gradus("diff", "zero", "one").stdout
    assert "earlier version" in refused(gradus, "zero:start", "one")
    assert not [each for each in verify(run) if each.damage]


def test_damaged_answers_are_told(gradus: Gradus) -> None:
    run = RunFolder("runs/zero", STAGE_CONFIGS)
    file, _ = answers_of(run, 1)
    file.write_bytes(file.read_bytes() + b" ")
    assert "its answers are gone or damaged" in told(gradus, "zero", "one")["notes"][0]
    (wrong,) = [each for each in verify(run) if each.damage]
    assert (wrong.what, wrong.damage) == ("dapo: answers", f"altered: {ANSWERS_FILE}")


def test_what_cannot_be_compared_is_refused(gradus: Gradus, tmp_path: Path) -> None:
    assert "did you mean `zero`?" in refused(gradus, "zreo", "one")
    assert "did you mean `sft`?" in refused(gradus, "zero", "one:sfd")
    assert "this names no run" in refused(gradus, ":sft", "one")
    assert "there is no run called" in refused(gradus, "z" * 300, "one"), "too long for the name of a file"
    same = refused(gradus, "zero", "zero:dapo")
    assert "A and B are the same" in same and "zero:start, zero:sft" in same
    assert "lies in no run" in refused(gradus, str(tmp_path / "runs"), "one")
    run = RunFolder("runs/zero", STAGE_CONFIGS)
    inner = run.stage_dir(0) / "checkpoints" / "step-000007"
    inner.mkdir()
    assert "has not been evaluated on the held-out prompts" in refused(gradus, str(inner), "one")
    (run.stage_dir(1) / "result.json").unlink()
    assert "the stage `dapo` of the run 'zero' has not been evaluated yet" in refused(gradus, "zero:dapo", "one")
    (run.stage_dir(0) / "result.json").unlink()
    assert "or zero:start" in refused(gradus, "zero", "one")
    (run.path / "start.json").unlink()
    assert "no stage of the run 'zero' has been evaluated yet" in refused(gradus, "zero", "one")


def test_runs_without_a_common_prompt_are_refused(gradus: Gradus, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_parity(other)
    text = (other / "task.jsonl").read_text().replace("? 100", "? 200")
    (other / "task.jsonl").write_text(text)
    run = parity_run(other, "other")
    shutil.copytree(run.path, tmp_path / "runs" / "other")
    assert "were asked none of the same held-out prompts" in refused(gradus, "zero", "other")


def test_tasks_are_matched_by_name_and_then_by_content(trained: Path, tmp_path: Path) -> None:
    """A run that trains on the same file under a name, beside another task, is compared on what both were asked."""
    write_parity(tmp_path)
    lines = (tmp_path / "task.jsonl").read_text().splitlines()
    (tmp_path / "more.jsonl").write_text("\n".join(lines[:30]).replace("? 100", "? 300"))
    stage = {"stage": "sft", "steps": 20, "prompts_per_step": 8, "lr": 0.03, "task": "parity"}
    tasks = {"parity": parity_task("one"), "more": parity_task("one", path="more.jsonl", heldout=5)}
    given = {"task": None, "tasks": tasks, "sampling": {"max_tokens": 6}}
    several = launch(tmp_path, pipeline([stage], **given), name="several")
    zero = find_state("zero", trained / "runs", STAGE_CONFIGS)
    found = diff(zero, State(several, 0), limit=1)
    assert found["prompts"] == {"a": 16, "b": 21, "both": 16} and found["accuracies"][0]["only_a"] == EVEN
    assert found["only_b"]["prompts"][0] | {"id": "", "question": ""} == {
        "id": "", "question": "", "task": "", "answer": "1", "a": "answer: 0", "b": "answer: 1",
    }  # fmt: skip
    by_task = diff(State(several, None), State(several, 0))["accuracies"]
    assert (by_task[0]["prompts"], by_task[0]["only_b"]) == (16, ODD)
    assert [row["task"] for row in by_task] == ["parity", "more", "all"] and by_task[2]["prompts"] == 21
    # two tests: the smaller p counts twice
    assert by_task[0]["p_holm"] == pytest.approx(2 * by_task[0]["p"]) and "p_holm" not in by_task[2]
    screen = Screen(width=80, record=True, file=io.StringIO())
    print_diff(diff(State(several, None), State(several, 0), limit=1), screen)
    shown = screen.export_text()
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown, "no number is cut"
    assert re.search(rf" parity +16 0\.000 0\.375 \+0\.375 +0\.\d+ to 0\.\d+ +0 +{ODD} 0\.062", shown)
    assert re.search(r" task +parity +\n", shown) and "corrected by Holm" in shown
    with pytest.raises(UserError, match="A and B are the same"):
        diff(State(several, 0), State(several, 0))
