"""A stage that learns from what an earlier one wrote: the same after a kill, and told where it is missing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from killed_runs import KILL, TERM, assert_same, run_lives
from small_pipeline import launch, pipeline

from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.execution.prompt_choice import check_demonstrations
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import metric_history
from gradus.stages import discover

STAGES = [
    {"stage": "dapo", "group_size": 3, "steps": 5, "prompts_per_step": 8},
    {"stage": "gfpo", "group_size": 3, "steps": 4, "async": 1, "prompts_per_step": 8},
    {"stage": "sft", "steps": 4, "prompts_per_step": 4, "demonstrations": {"from": "dapo", "per_prompt": 2}},
    {"stage": "sft", "name": "again", "steps": 2, "prompts_per_step": 4, "demonstrations": {"from": "gfpo"}},
]
GRADED = {"reward": "length", "params": {"max": 5, "falloff": 15}}


def chain(stages: list[dict], task: dict | None = None) -> PipelineConfig:
    options = {} if task is None else {"task": task}
    judged = {"rewards": [GRADED, {"reward": "equation_steps"}], "evaluation": {"threshold": 0.3}}
    return pipeline(stages, checkpoints={"every_steps": 2}, sampling={"max_tokens": 24}, **judged, **options)


def kept(run: RunFolder, index: int) -> list[dict]:
    file = run.stage_dir(index) / "completions.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_killed_run_keeps_and_learns_the_same(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml_text.dump(chain(STAGES).model_dump(mode="json")))
    undisturbed = run_lives(tmp_path, "undisturbed", "-")
    lives = [
        f"dapo:1:0.5:{KILL}",
        f"dapo:3:0.6:{TERM}",
        f"gfpo:3:0.4:{KILL}",
        f"sft:2:0.5:{KILL}",
        f"again:1:0.5:{KILL}",
    ]
    killed = run_lives(tmp_path, "killed", *lives, "-")
    assert_same(undisturbed, killed)
    for index in (0, 1):
        assert kept(killed, index) == kept(undisturbed, index) != []
        assert (killed.result(index) or {})["completions"] == (undisturbed.result(index) or {})["completions"]
        assert {line["step"] for line in kept(killed, index)} <= set(range(1, STAGES[index]["steps"] + 1))
    assert not kept(killed, 2) and "completions" not in (killed.result(2) or {})
    shown = Counter(line["id"] for line in kept(killed, 0))
    assert max(shown.values()) > 1, "some prompt has two, or the choice of the newest shows nothing"
    assert len(set(metric_history(killed.stage_dir(2) / "journal.jsonl")["completion/length"].values())) > 1


def test_a_task_without_demonstrations_will_do(tmp_path: Path) -> None:
    from small_pipeline import TASK

    run = launch(tmp_path, chain([STAGES[0], STAGES[2]], {**TASK, "demonstrations": "none", "columns": {}}))
    assert (run.result(1) or {})["steps"] == 4


def test_what_was_not_kept_or_was_altered_is_told_before_the_stage_trains(tmp_path: Path) -> None:
    first = launch(tmp_path, chain(STAGES[:1]), "first")
    asking = chain([STAGES[0], STAGES[2]])
    other = RunFolder(first.path, [stage.config for stage in discover().values()])
    other.__dict__["config"] = asking
    other.__dict__["outline"] = [{"name": "dapo"}, {"name": "sft"}]
    from gradus.pipeline.execution.prompt_choice import demonstrated
    from gradus.pipeline.tasks.several.build import load_tasks

    tasks = load_tasks(first.data_dir, asking.named_tasks)
    with pytest.raises(UserError, match=r"were not kept(.|\n)*stages\.sft\.demonstrations\.from(.|\n)*--from dapo"):
        demonstrated(other, 1, tasks)
    second = launch(tmp_path, asking, "second")
    file = second.stage_dir(0) / "completions.jsonl"
    file.write_text(file.read_text().replace("step", "stop", 1))
    with pytest.raises(UserError, match="are damaged"):
        demonstrated(second, 1, tasks)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([STAGES[0], {**STAGES[2], "demonstrations": {"from": "srpo"}}], ["sft.demonstrations.from", "srpo", "dapo"]),
        ([STAGES[2], STAGES[0]], ["no earlier stage writes", "an earlier stage that samples"]),
        (
            [{"stage": "sft"}, {**STAGES[2], "name": "b", "demonstrations": {"from": "sft"}}],
            ["no earlier stage writes"],
        ),
        (
            [STAGES[0], {"stage": "gfpo", "demonstrations": {"from": "dapo"}}],
            ["learns from no demonstrations", "stages.gfpo.demonstrations"],
        ),
    ],
)
def test_what_cannot_be_learned_from_is_refused(stages: list[dict], said: list[str]) -> None:
    config, known = chain(stages), discover()
    with pytest.raises(UserError) as caught:
        for stage in config.stages:
            check_demonstrations(config, stage, known)
    for words in said:
        assert words in str(caught.value)
