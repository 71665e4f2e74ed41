"""The published recipes of `configs/recipes/`: each is sound, can be planned without a network, and trains."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from paths import REPOSITORY
from typer.testing import CliRunner

from gradus.flows.cli import app
from gradus.flows.open_run import load
from gradus.flows.order import run_plain
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config.checks import profile_size
from gradus.pipeline.config.loading import PACKAGED
from gradus.pipeline.execution.preflight import preflight
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tasks.prompts.memory import read_rows
from gradus.pipeline.tasks.prompts.rates import parted, train_keys
from gradus.pipeline.types import Prompt

RECIPES = sorted(path.stem for path in (PACKAGED / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_every_stage_at_toy_size(name: str, tmp_path: Path) -> None:
    loaded, stages = load(f"recipes/{name}", [], tiny=tmp_path / "runs")
    config = loaded.config
    preflight(config, loaded.base_dir, stages, tmp_path / "runs")
    run = RunFolder.create(tmp_path / "runs", config, "run", loaded.path, [each.config for each in stages.values()])
    summary = run_plain(run.path, Observer())
    assert [stage["name"] for stage in summary["stages"]] == [stage.label for stage in config.stages]
    for stage, folder in zip(config.stages, sorted((run.path / "stages").iterdir()), strict=True):
        lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
        steps = [line["values"] for line in lines if line["kind"] == "metrics" and "update/rows" in line["values"]]
        assert len(steps) == stage.steps
        if not stage.trains:
            continue
        assert sum(step["update/rows"] for step in steps) > 0, "something was learned from"
        if stages[stage.stage].needs(stage).completions in ("demonstrations", "pairs"):
            continue
        longest = (stage.sampling or config.sampling).max_tokens
        assert all(0 < step["completion/length"] <= longest for step in steps)
        profiled = len(parted(read_rows(folder / "prompts.bin"))[0])
        tasks = config.shares(stage) if profile_size(stage) else ()
        assert profiled == sum(len(train_keys(run.data_dir / task)) for task in tasks)
        assert {value for step in steps for key, value in step.items() if key.startswith("reward_errors/")} == {0.0}
        scored = {reward.label for task in config.shares(stage) for reward in config.rewards_by_task[task]}
        assert {f"reward/{label}" for label in {*scored, "tiny"}} <= {key for step in steps for key in step}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_planned_without_a_network(name: str, tmp_path: Path) -> None:
    words = ["plan", f"recipes/{name}", "--hardware", "8xH100", "--json", "--runs", str(tmp_path)]
    told = CliRunner().invoke(app.app, words)
    assert told.exit_code == 0, told.output
    for stage in json.loads(told.stdout)["sizes"]["stages"]:
        assert stage["peak"] > 1e9 and max(stage["sampling_seconds"], stage["learning_seconds"]) > 1
        assert ("profile_seconds" in stage) == (name in ("skywork-or1", "nemotron-3-nano"))
    page = (REPOSITORY / "docs" / "recipes.md").read_text()
    assert f"`{name}`" in page and f"gradus run recipes/{name}" in (PACKAGED / "recipes" / f"{name}.yaml").read_text()


@pytest.fixture(scope="module")
def code_tests() -> ModuleType:
    found = importlib.util.spec_from_file_location("code_tests", PACKAGED / "recipes" / "code_tests.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


READS = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7"]}
CALLS = {"inputs": [[1, 2], [3, 4]], "outputs": [3, [7]], "fn_name": "add"}
CHECK = "def check(f):\n    assert f(1, 2) == 3\n"
CHECKS = {"import_prefix": "from math import *\n", "test_code": CHECK, "entry_point": "add"}
ASSERTS = {"assert_case": ["assert add(1, 2) == 3", "assert add(3, 4) == 7"]}
PRINTS = "print(sum(map(int, input().split())))"
ADDS = "def add(a, b):\n    return a + b"


@pytest.mark.parametrize(
    ("tests", "program", "score"),
    [
        (READS, PRINTS, 1.0),
        (READS, "print(3)", 0.0),
        (CALLS, ADDS, 1.0),
        (CALLS, "class Solution:\n    def add(self, a, b):\n        return b + a", 1.0),
        (CHECKS, "def add(a, b):\n    return floor(a) + b", 1.0),
        (ASSERTS, ADDS, 1.0),
        (ASSERTS, "def add(a, b):\n    return 3", 0.0),
        (ASSERTS, "def add(a, b) return", 0.0),
        (ASSERTS, "import os\nadd = lambda a, b: a + b + ('PYTHONPATH' in os.environ)", 1.0),
        (ASSERTS, "add = lambda a, b: len(bytearray(2**33))", 0.0),
        (READS, "while True: pass", 0.0),
    ],
)
def test_code_is_paid_where_it_passes_every_test(
    code_tests: ModuleType, tests: dict, program: str, score: float
) -> None:
    prompt = Prompt("p", "Add.", json.dumps(tests))
    block = f"```python\n{program}\n```"
    seconds = 0.5 if "while" in program else 10.0
    assert code_tests.passes(prompt, f"<think>{block}</think>So:\n{block}\n", seconds) == score
    assert code_tests.passes(prompt, f"<think>{block}</think>no program", seconds) == 0.0


def test_code_whose_tests_have_no_known_form_is_an_error_of_its_prompt(code_tests: ModuleType) -> None:
    with pytest.raises(ValueError, match="unknown form of tests: outputs"):
        code_tests.passes(Prompt("p", "Add.", '{"outputs": ["3"]}'), "no program")
