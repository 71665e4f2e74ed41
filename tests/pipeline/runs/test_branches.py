"""Branches and a merge: killed and resumed, planned, forked, verified and done again, each by what descends from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from killed_runs import KILL, TERM, assert_same, run_lives
from safetensors.torch import load_file
from small_pipeline import STAGE_CONFIGS, Notes, launch, pipeline
from trained_chain import flip

from gradus import load_run
from gradus.flows.resume_run import check_restart, restart_from
from gradus.flows.screen.status import run_status
from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.runs import fork as forking
from gradus.pipeline.runs.plan import plan
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.same_outcome import outcome_differences
from gradus.pipeline.runs.verify import verify
from gradus.pipeline.tracking.journal import iter_events, metric_history

GRADED = {"reward": "length", "params": {"max": 5, "falloff": 15}}  # one that a new policy earns in part
DAPO = {"stage": "dapo", "group_size": 3, "steps": 3, "lr": 1e-3}
STAGES = [
    {"stage": "sft", "steps": 2},
    {**DAPO, "name": "math"},
    {**DAPO, "name": "code", "from": "sft"},
    {"stage": "merge", "name": "soup", "of": ["math", "code"], "weights": [3, 1]},
    {**DAPO, "name": "last", "prompts": {"pass_rate": [0, 1], "from": "code"}},
]
OPTIONS = {"rewards": [GRADED, {"reward": "equation_steps"}], "evaluation": {"threshold": 0.4}}


def branches(stages: list[dict] | None = None, **options):
    return pipeline(stages or STAGES, checkpoints={"every_steps": 1}, **(OPTIONS | options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("branches")
    (folder / "config.yaml").write_text(yaml_text.dump(branches().model_dump(mode="json")))
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> RunFolder:
    return run_lives(folder, "undisturbed", "-")


@pytest.fixture
def run(undisturbed: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy that a test may change."""
    shutil.copytree(undisturbed.path.parents[0], tmp_path / "runs")
    shutil.copy(undisturbed.path.parents[1] / "task.jsonl", tmp_path)
    return RunFolder(tmp_path / "runs" / "undisturbed", STAGE_CONFIGS)


def results(run: RunFolder) -> list[dict]:
    return [run.result(index) or {} for index in range(5)]


def test_a_run_that_was_killed_in_a_branch_is_the_same(folder: Path, undisturbed: RunFolder) -> None:
    lives = [f"code:1:0.3:{KILL}", f"last:1:0.5:{TERM}"]
    assert_same(undisturbed, run_lives(folder, "killed", *lives, "-"))


def test_each_stage_comes_from_its_parent(undisturbed: RunFolder) -> None:
    sft, math, code, soup, last = results(undisturbed)
    assert math["parent"] == code["parent"] == sft["content"] != math["content"] != code["content"]
    assert (soup["parent"], soup["inputs"]) == (math["content"], {"code": code["content"]})
    assert last["parent"] == soup["content"] and "inputs" not in last, "code is among what soup was made from"
    assert code["accuracy_before"] == sft["accuracy_after"] and soup["accuracy_before"] == math["accuracy_after"]
    assert (soup["steps"], soup["rollouts"], soup["algorithm"]) == (0, 0, "merge")
    files = [load_file(Path(each["checkpoint"]) / "model.safetensors") for each in (math, code, soup)]
    for name, value in files[2].items():
        assert value.equal(files[0][name] + 0.25 * (files[1][name] - files[0][name]))
    assert not files[2]["model.norm.weight"].equal(files[0]["model.norm.weight"])


def test_everybody_who_looks_sees_the_graph(undisturbed: RunFolder) -> None:
    origins = [["start"], ["sft"], ["sft"], ["math", "code"], ["soup"]]
    assert [each["from"] for each in (undisturbed.summary() or {})["stages"]] == origins
    assert [list(each.started_from) for each in load_run(undisturbed.path).stages] == origins
    assert [each["from"] for each in run_status(undisturbed)["stages"]] == origins
    assert [list(each.origins) for each in plan(undisturbed, undisturbed.config)] == origins
    started = [next(event for event, _ in iter_events(undisturbed.stage_dir(index) / "journal.jsonl"))
               for index in range(5)]  # fmt: skip
    assert [event["tags"]["gradus.from"] for event in started] == ["start", "sft", "sft", "math", "soup"]
    assert metric_history(undisturbed.stage_dir(3) / "journal.jsonl").keys() >= {"heldout/accuracy"}
    assert (undisturbed.summary() or {})["accuracy_end"] == results(undisturbed)[4]["accuracy_after"]


def actions(run: RunFolder, config=None, again: int | None = None) -> str:
    return " ".join(each.action for each in plan(run, config or run.config, again))


def test_a_change_undoes_what_descends_from_it_alone(run: RunFolder) -> None:
    assert actions(run) == "reuse reuse reuse reuse reuse"
    for place, expected in ((1, "reuse run reuse run run"), (2, "reuse reuse run run run")):
        stages = [{**stage, "lr": 2e-3} if index == place else stage for index, stage in enumerate(STAGES)]
        changed = plan(run, branches(stages))
        assert " ".join(each.action for each in changed) == expected == actions(run, again=place)
        assert changed[3].why == changed[4].why == f"comes after {STAGES[place]['name']}"
        assert changed[place].changes == (f"{STAGES[place]['name']}.lr: 0.001 -> 0.002",)
    heavier = [{**stage, "weights": [1, 1]} if stage["stage"] == "merge" else stage for stage in STAGES]
    assert actions(run, branches(heavier)) == "reuse reuse reuse run run"
    moved = plan(run, branches([*STAGES[:2], {**STAGES[2], "from": "math"}, *STAGES[3:]]))
    assert [each.action for each in moved] == ["reuse", "reuse", "run", "run", "run"]
    assert moved[2].changes == ('code.from: "sft" -> null',), "which is the stage before it"


def test_what_is_done_again_leaves_the_sibling(run: RunFolder, undisturbed: RunFolder) -> None:
    restart_from(run, 2)
    assert actions(run) == "reuse reuse run run run" and not run.stage_dir(2).exists()
    with pytest.raises(UserError, match="nothing to start soup from") as caught:
        check_restart(run, 3)
    assert caught.value.got == "stage code has no result"
    begun = run.stage_dir(1).stat().st_mtime_ns
    launch(run.path.parents[1], run.config, run.name)
    assert run.stage_dir(1).stat().st_mtime_ns == begun and outcome_differences(undisturbed, run) == []


def test_a_fork_inside_a_branch_shares_the_sibling(run: RunFolder) -> None:
    changed = [*STAGES[:1], {**STAGES[1], "lr": 2e-3}, *STAGES[2:]]
    config = branches(changed)
    assert forking.fork_points(run) == [0, 1, 2, 3, 4]
    forking.check_changes(run, 1, config)
    forking.check_parent(run, 1, config)
    fork = forking.fork(run, 1, config, run.path.with_name("fork"))
    shared = [(fork.result(index) or {}).get("shared") for index in range(5)]
    assert shared == ["undisturbed", None, "undisturbed", None, None]
    assert actions(fork) == "reuse run reuse run run"
    both = branches([*changed[:2], {**STAGES[2], "lr": 3e-3}, *STAGES[3:]])
    assert actions(forking.fork(run, 1, both, run.path.with_name("both"))) == "reuse run run run run"
    launch(run.path.parents[1], fork.config, "fork")
    ours, theirs = results(fork), results(run)
    assert [one["content"] == two["content"] for one, two in zip(ours, theirs, strict=True)] == [1, 0, 1, 0, 0]


def test_a_fork_needs_what_it_starts_from_alone(run: RunFolder) -> None:
    """A branch that was never done keeps nobody from forking the other one."""
    (run.path / "summary.json").unlink()
    for index in (1, 3, 4):
        shutil.rmtree(run.stage_dir(index))
    assert forking.fork_points(run) == [0, 1, 2]
    forking.check_shareable(run, 2)
    with pytest.raises(UserError, match="has not done that yet") as caught:
        forking.check_shareable(run, 3)
    assert caught.value.got == "the stage `math` has no result yet"
    fork = forking.fork(run, 2, run.config, run.path.with_name("fork"))
    assert [fork.result(index) is not None for index in range(5)] == [True, False, False, False, False]


def test_damage_is_found_and_only_what_is_still_read_is_made_again(run: RunFolder, undisturbed: RunFolder) -> None:
    flip(Path(results(run)[3]["checkpoint"]) / "model.safetensors")
    found = {finding.what: finding for finding in verify(run) if finding.damage}
    assert list(found) == ["soup"] and "altered: model.safetensors" in found["soup"].damage
    assert "gradus resume undisturbed --from last" in found["soup"].remedy
    assert actions(run) == "reuse reuse reuse reuse reuse", "nothing needs it any more"
    restart_from(run, 4)
    assert "gradus resume undisturbed" in next(finding.remedy for finding in verify(run) if finding.damage)
    notes: list[str] = []
    launch(run.path.parents[1], run.config, run.name, Notes(notes))
    assert any(note.startswith("the result of stage soup is damaged (altered: model.safetensors)") for note in notes)
    assert outcome_differences(undisturbed, run) == []


def test_models_from_elsewhere_are_merged_or_refused(run: RunFolder) -> None:
    """A checkpoint's folder is a model like any other; one of other sizes is found where it is read."""
    folder, math = run.path.parents[1], Path(results(run)[1]["checkpoint"])
    merged = branches([STAGES[0], {"stage": "merge", "name": "soup", "of": ["sft", str(math)], "method": "slerp"}])
    done = launch(folder, merged, "foreign")
    assert (done.result(1) or {})["parent"] == (done.result(0) or {})["content"] != (done.result(1) or {})["content"]
    sizes = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    policy = {"architecture": {**sizes, "num_attention_heads": 2, "num_key_value_heads": 2}, "device": "cpu"}
    wider = branches([STAGES[0], {"stage": "merge", "name": "soup", "of": ["sft", str(math)]}], policy=policy)
    with pytest.raises(UserError, match="two architectures") as caught:
        launch(folder, wider, "wider")
    assert "hidden_size: 16, not 32" in str(caught.value.got) and caught.value.where == str(math)
