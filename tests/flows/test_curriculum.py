"""`examples/curriculum`: the comparison that its file names is sound, and its arms train at toy size."""

from __future__ import annotations

import doctest
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from paths import REPOSITORY

from gradus.flows.compare.plan.budget import Budget
from gradus.flows.compare.plan.comparison import ComparisonPlan, make_plan
from gradus.flows.order import run_plain
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config.loading import load_config
from gradus.pipeline.execution.preflight import preflight
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.stages import discover

EXAMPLE = REPOSITORY / "examples" / "curriculum"
STAGES = discover()
KINDS = [stage.config for stage in STAGES.values()]
SCRIPTS = ("dial_task", "read_sums")
SMALLER = {
    "hidden_size: 128": "hidden_size: 16", "intermediate_size: 256": "intermediate_size: 32", "layers: 3": "layers: 1",
    "heldout: 300": "heldout: 4", "validation: 100": "validation: 4", "steps: 300": "steps: 2",
}  # fmt: skip


def script(name: str, folder: Path = EXAMPLE) -> ModuleType:
    """A script of the example as a module."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's files at toy size, and its data."""
    found = tmp_path_factory.mktemp("curriculum")
    for file in (EXAMPLE / name for name in ("curriculum.yaml", "by-pass-rate.yaml", "dial_task.py")):
        text = file.read_text()
        for large, small in SMALLER.items() if file.suffix == ".yaml" else ():
            assert large in text, file.name
            text = text.replace(large, small)
        (found / file.name).write_text(text)
    script("dial_task", found).main()
    return found


@pytest.fixture(scope="module")
def plan(folder: Path) -> ComparisonPlan:
    """What the command at the head of the file compares, on a budget of a few steps."""
    head = "".join(re.findall(r"^#(.*\n)", (EXAMPLE / "curriculum.yaml").read_text(), re.MULTILINE))
    command = re.search(r"gradus compare curriculum.yaml (?:.*\\\n)*.*", head)
    assert command is not None
    words = shlex.split(command[0].replace("\\\n", ""))[3:]
    options = list(zip(words[::2], words[1::2], strict=True))
    arms = re.sub(r"=([^,=]+\.yaml)", rf"={folder}/\1", dict(options)["--arms"])
    changes = [value for option, value in options if option == "--set-arm"]
    loaded = load_config(str(folder / "curriculum.yaml"), [], KINDS)
    preflight(loaded.config, loaded.base_dir, STAGES, folder / "runs")
    return make_plan(loaded, STAGES, arms, Budget(6 * 128), changes, folder / "runs")


@pytest.mark.parametrize("label", ["growing", "by-rates", "gfpo"])
def test_an_arm_of_the_example_trains(label: str, plan: ComparisonPlan, folder: Path) -> None:
    (arm,) = (each for each in plan.arms if each.label == label)
    run = RunFolder.create(folder / "runs", plan.arm(arm, 0), label, plan.path, KINDS)
    summary = run_plain(run.path, Observer())
    assert sum(stage["rollouts"] for stage in summary["stages"][1:]) == plan.budget.amount
    assert {task: record["prompts"] for task, record in summary["tasks"][-1]["tasks"].items()} == dict.fromkeys(
        ("easy", "middle", "hard", "mixed"), 4
    )


def test_the_arms_train_on_what_they_are_named_after(plan: ComparisonPlan) -> None:
    trained = {
        arm.label: [(stage.stage, sorted(config.shares(stage))) for stage in config.stages[1:]]
        for arm in plan.arms
        for config in [plan.arm(arm, 0)]
    }
    levels = ["easy", "hard", "middle"]
    assert trained == {
        "growing": [("dapo", ["easy"]), ("dapo", ["middle"]), ("dapo", ["hard"])],
        "by-rates": [("dapo", ["mixed"])] * 3,
        "dapo": [("dapo", levels)],
        "gfpo": [("gfpo", levels)],
        "hard": [("dapo", ["hard"])],
    }


def test_the_scripts_do_what_they_say() -> None:
    assert all(doctest.testmod(script(name)).attempted and not doctest.testmod(script(name)).failed for name in SCRIPTS)
