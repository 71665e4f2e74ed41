"""`--tiny`: any configuration at toy size, with a model and rows that are made up, and every stage as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Gradus
from small_pipeline import STAGE_CONFIGS

from gradus.flows.open_run import load
from gradus.flows.tiny import make_tiny
from gradus.flows.tiny.model import write_model
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.loading import config_of_data
from gradus.pipeline.config.tasks import ONLY
from gradus.pipeline.execution.preflight import preflight
from gradus.stages import discover

POLICY = {"path": "someone/a-model", "revision": "main", "eos": "<|eot|>", "dtype": "bfloat16"}
SFT, DAPO = {"stage": "sft", "steps": 9}, {"stage": "dapo", "steps": 400, "group_size": 16, "prompts_per_step": 64}
FORMS = {
    "nested": ({"columns": {"question": "a.b", "answer": "a.c"}}, DAPO),
    "a column": ({"columns": {"demonstration": "worked"}, "demonstrations": "column"}, SFT),
    "turns": ({"demonstrations": "column"}, SFT),
    "one column twice": ({"columns": {"demonstration": "answer"}, "demonstrations": "column"}, SFT),
    "messages": ({"format": "messages", "columns": {"question": "chat"}, "demonstrations": "column"}, SFT),
    "sharegpt": ({"format": "sharegpt", "demonstrations": "column"}, SFT),
    "alpaca": ({"format": "alpaca", "demonstrations": "column"}, SFT),
    "pairs": ({}, {"stage": "dpo", "steps": 9, "prompts_per_step": 64}),
    "numbers": ({}, {**DAPO, "order": {"by": "difficulty"}}),
    "no answer": ({"columns": {"answer": None}}, DAPO),
}  # fmt: skip


def tiny(folder: Path, stages: list[dict], **options) -> tuple:
    """A configuration of these stages at toy size, its line, and the folder of its model and rows."""
    task = {"source": "hub", "dataset": "someone/data", "split": "validation", "heldout": 500}
    raw = {"name": "own", "policy": POLICY, "task": task, "rewards": [{"reward": "exact_answer"}], "stages": stages}
    raw |= {"rollouts": {"engine": "vllm-server"}, "launch": {"processes": 8, "shard": "fsdp"}, **options}
    config = config_of_data(raw, [], STAGE_CONFIGS).config
    return *make_tiny(config, discover(), folder), config


@pytest.mark.parametrize("form", FORMS)
def test_made_up_rows_have_the_form_of_the_task(form: str, tmp_path: Path) -> None:
    options, stage = FORMS[form]
    config, *_ = tiny(tmp_path, [stage], task={"source": "hub", "dataset": "someone/data", **options})
    notes = preflight(config, tmp_path, discover(), tmp_path)
    assert not [note for note in notes if "left out" in note]
    rows = [json.loads(line) for line in Path(config.named_tasks[ONLY].path).read_text().splitlines()]
    assert len(rows) == 28 and len({json.dumps(row) for row in rows}) == 28


def test_every_stage_stays_and_what_it_costs_is_cut(tmp_path: Path) -> None:
    rules = {"prompts": {"pass_rate": [0.2, 0.8]}, "eval_every": 20, "guard": {}}
    rules["until"] = {"accuracy": 0.7, "plateau": {"window": 12}}
    teacher = {"stage": "opd", "steps": 60, "teacher": "someone/a-teacher", "sampling": {"max_tokens": 1024}}
    soup = {"stage": "merge", "of": ["dapo-2", "start", "someone/another", "someone/a-teacher"]}
    task = {"source": "hub", "dataset": "someone/data", "heldout": 500, "validation": 300}
    data = {"task": task, "sampling": {"max_tokens": 4096, "ban": ["<|eot|>"]}}
    config, told, before = tiny(tmp_path, [DAPO, {**DAPO, **rules}, teacher, soup], **data)
    assert [stage.label for stage in config.stages] == [stage.label for stage in before.stages]
    first, second, third, merged = config.stages
    assert (first.steps, first.prompts_per_step, first.group_size, first.lr) == (4, 4, 8, before.stages[0].lr)
    assert second.prompts.pass_rate == (0.0, 0.8) and second.until.plateau.window == 4 and second.guard is not None
    assert (config.sampling.max_tokens, third.sampling.max_tokens) == (24, 6), "in proportion"
    assert third.teacher == merged.of[3] != merged.of[2] and merged.of[:2] == ["dapo-2", "start"]
    weights = {(Path(each) / "model.safetensors").read_bytes() for each in (config.policy.path, *merged.of[2:])}
    assert len(weights) == 3, "each model has weights of its own"
    assert config.rollouts.engine == "transformers" and config.launch.processes == 1 and config.name == "own-tiny"
    assert "someone/a-model" in told and "nothing about results" in told
    preflight(config, tmp_path, discover(), tmp_path)
    assert make_tiny(before, discover(), tmp_path)[0] == config, "and it is the same when it is asked for again"


def test_a_new_model_keeps_its_plain_template_and_generated_prompts_stay(tmp_path: Path) -> None:
    loaded, stages = load("quickstart", [], tiny=tmp_path)
    assert loaded.config.policy.template == "plain" and loaded.config.policy.architecture is None
    assert loaded.config.task.source == "reasoning_gym" and loaded.config.task.demonstrations == "solver"
    preflight(loaded.config, loaded.base_dir, stages, tmp_path)


def test_what_makes_no_sense_at_toy_size_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="makes no sense at toy size"):
        tiny(tmp_path, [{**DAPO, "eval_every": 1, "until": {"accuracy": 0.4, "errors": 9.0}}],
             task={"source": "hub", "dataset": "a/b", "validation": 5000})  # fmt: skip


def test_a_model_is_written_once_and_by_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_model(tmp_path / name, seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c and len(a) == len(c)
    (tmp_path / "a" / "model.safetensors").write_bytes(b"")
    write_model(tmp_path / "a", 0)
    assert not (tmp_path / "a" / "model.safetensors").read_bytes(), "what is there is left alone"


@pytest.mark.usefixtures("quiet_process")
def test_check_config_and_plan_take_it(gradus: Gradus) -> None:
    runs = ("--runs", str(gradus.runs))
    checked = gradus("check", "recipes/polaris", "--tiny", *runs)
    assert "polaris-tiny: 40k (4 steps)" in checked.stdout and "tiny: a new model" in checked.stderr
    printed = gradus.folder / "printed.yaml"
    printed.write_text(gradus("config", "recipes/polaris", "--tiny", *runs).stdout)
    assert gradus("config", str(printed)).stdout == printed.read_text()
    planned = json.loads(gradus("plan", "recipes/polaris", "--tiny", "--json", *runs).stdout)
    assert "gradus run recipes/polaris --tiny" in json.dumps(planned)
    for words in (["run", "recipes/polaris", "--tiny", "--on", "pool"], ["plan", "--name", "x", "--tiny"]):
        assert "--tiny" in gradus(*words, *runs, code=2).stderr
