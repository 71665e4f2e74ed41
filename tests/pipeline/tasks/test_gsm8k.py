"""`configs/gsm8k-qwen.yaml` on rows of GSM8K's form and a small model, from local folders: data, rewards, stages."""

from __future__ import annotations

from gsm8k_rows import STAGES, loaded

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.execution.prepare import prepare
from gradus.pipeline.execution.stage import run_stage
from gradus.pipeline.execution.summary import finish
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tasks.data import all_prompts
from gradus.pipeline.tasks.task import build_task
from gradus.stages import discover

BUILT_IN = "rollouts.engine=transformers"


def test_its_rewards_read_the_answers_of_the_data_set(tmp_path):
    config = loaded(tmp_path, BUILT_IN).config
    task = build_task(config.task, tmp_path, tmp_path / "data")
    prompts = all_prompts(task, "heldout")
    right = [prompt.answer for prompt in prompts]  # a worked answer is its own reference
    texts = [[answer, answer.replace("#### ", "#### 1"), "no idea"] for answer in right]
    with RewardSuite(config.rewards, 1, tmp_path / "rewards.log") as suite:
        scores = suite.score(prompts, texts)
    assert scores.components["math_verify"] == [[1.0, 0.0, 0.0]] * len(prompts)
    assert all(1200 > len(answer) > 0 for answer in right) and scores.components["length"][0][0] == 1.0


def test_it_goes_through_its_stages(tmp_path):
    config, kinds = loaded(tmp_path, BUILT_IN).config, [stage.config for stage in discover().values()]
    run = RunFolder.create(tmp_path / "runs", config, "run", tmp_path / "gsm8k.yaml", kinds)
    parent = prepare(run, Observer())["checkpoint"]
    for index, stage in enumerate(config.stages):
        result = run_stage(run, index, parent, discover()[stage.stage], Observer())
        assert result["steps"] == 1
        parent = result["checkpoint"]
    assert [stage["name"] for stage in finish(run)["stages"]] == list(STAGES)
