"""Several tasks in a configuration: what stages choose, how completions are judged there, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.loading import load_config
from gradus.stages import discover

STAGES = [stage.config for stage in discover().values()]
TEXT = """\
name: several
policy: {architecture: {model_type: llama}}
tasks:
  sums: {source: reasoning_gym, dataset: chain_sum, heldout: 10, validation: 20, demonstrations: solver}
  sort: {source: reasoning_gym, dataset: number_sorting, heldout: 10, rewards: [{reward: reasoning_gym}]}
rewards: [{reward: exact_answer}]
stages:
  - {stage: sft, steps: 3, task: sums}
  - {stage: dapo, steps: 3, task: {sums: 3, sort: 1}, extra_rewards: [{reward: length, params: {max: 6}}]}
  - {stage: gfpo, steps: 3, task: {source: reasoning_gym, dataset: chain_sum, seed: 3}}
  - {stage: srpo, steps: 3, task: sort, rewards: [{reward: numeric_answer}], evaluation: {threshold: 0.5}}
"""


def loaded(folder: Path, text: str = TEXT) -> PipelineConfig:
    (folder / "several.yaml").write_text(text)
    return load_config(str(folder / "several.yaml"), [], STAGES).config


def test_each_stage_has_its_tasks_and_their_shares(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    assert list(config.named_tasks) == ["sums", "sort", "gfpo"]
    assert [config.shares(stage) for stage in config.stages] == [
        {"sums": 1.0}, {"sums": 0.75, "sort": 0.25}, {"gfpo": 1.0}, {"sort": 1.0},
    ]  # fmt: skip


def test_a_completion_is_judged_by_its_task_and_its_stage(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    sft, dapo, _, srpo = (config.in_stage(stage) for stage in config.stages)

    def labels(pipeline: PipelineConfig) -> dict[str, list[str]]:
        return {name: [reward.label for reward in each] for name, each in pipeline.rewards_by_task.items()}

    assert labels(sft) == {"sums": ["exact_answer"], "sort": ["reasoning_gym"], "gfpo": ["exact_answer"]}
    assert labels(dapo) == {
        "sums": ["exact_answer", "length"], "sort": ["reasoning_gym", "length"], "gfpo": ["exact_answer"],
    }  # fmt: skip
    assert labels(srpo) == {"sums": ["exact_answer"], "sort": ["numeric_answer"], "gfpo": ["exact_answer"]}
    assert [srpo.judgement(name).evaluation.threshold for name in ("sums", "sort")] == [1.0, 0.5]


def test_the_pipeline_can_choose_for_stages_that_do_not(tmp_path: Path) -> None:
    config = loaded(tmp_path, TEXT.replace("tasks:", "task: sort\ntasks:", 1).replace(", task: sums}", "}"))
    assert config.shares(config.stages[0]) == {"sort": 1.0}


ONE = "name: one\npolicy: {architecture: {model_type: llama}}\ntask: {source: reasoning_gym, dataset: chain_sum}\n"


def test_the_only_task_has_no_name_and_one_beside_a_stages_own_has(tmp_path: Path) -> None:
    one = loaded(tmp_path, ONE + "rewards: [{reward: exact_answer}]\nstages: [{stage: dapo, steps: 1}]\n")
    assert list(one.named_tasks) == [""] and one.in_stage(one.stages[0]) is one
    own = "{source: reasoning_gym, dataset: number_sorting, rewards: [{reward: reasoning_gym}]}"
    two = loaded(tmp_path, f"{ONE}rewards: [{{reward: exact_answer}}]\nstages:\n  - {{stage: dapo, steps: 1}}\n"
                           f"  - {{stage: gfpo, steps: 1, task: {own}}}\n")  # fmt: skip
    assert [two.shares(stage) for stage in two.stages] == [{"task": 1.0}, {"gfpo": 1.0}]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("sums: 3", "sums: -3", ["stages.dapo.task.sums", "-3", "more than 0"]),
        ("sums: 3", "sums: 0", ["stages.dapo.task.sums", "more than 0"]),
        ("sums: 3", "sums: much", ["stages.dapo.task.sums", '"much"', "a number"]),
        ("sums: 3", "summs: 3", ["stages.dapo.task", "'summs'", "sums, sort"]),
        ("task: sort,", "task: sorting,", ["stages.srpo.task", "'sorting'", "sums, sort"]),
        (", task: sums}", "}", ["'sft'", "does not say which task", "sums, sort"]),
        ("tasks:", "task: {source: reasoning_gym, dataset: chain_sum}\ntasks:", ["`task` and `tasks`"]),
        ("stage: gfpo,", "stage: gfpo, name: sums,", ["'sums'", "rename one"]),
        ("rewards: [{reward: exact_answer}]\n", "", ["task 'sums' has no rewards"]),
        ("{reward: length, params", "{reward: length, name: exact_answer, params", ["two rewards", "exact_answer"]),
        ("{threshold: 0.5}", "{reward: judge}", ["'judge'", "numeric_answer"]),
        ("dataset: number_sorting", "dataset: number_sorting, hedlout: 3", ["tasks.sort.hedlout", "`heldout`"]),
        ("seed: 3}", "sed: 3}", ["stages.gfpo.task.sed", "`seed`"]),
        ("source: reasoning_gym, dataset: number", "dataset: number", ["`sort` does not say which source"]),
        ("task: sort,", "task: sort, template_args: {a: 1},", ["stages.srpo.template_args", "plain"]),
        ("steps: 3, task: sums}", "steps: 3, task: sums, eval_every: 1, guard: {tasks: all}}", ["validation of sort"]),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, old: str, new: str, said: list[str]) -> None:
    assert old in TEXT
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, TEXT.replace(old, new, 1))
    for words in said:
        assert words in str(caught.value)


def test_without_any_task_there_is_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no task"):
        loaded(tmp_path, "name: a\npolicy: {architecture: {model_type: llama}}\nstages: [{stage: dapo, steps: 1}]\n")
