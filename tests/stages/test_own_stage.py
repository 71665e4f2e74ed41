"""A stage from outside the package: docs/own-stage.md to the letter, wherever a run is opened, and every mistake."""

from __future__ import annotations

import doctest
import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from own_code import documented, forgotten, own_folder, publish  # noqa: F401 - fixtures
from paths import REPOSITORY
from typer.testing import CliRunner, Result

from gradus.flows.cli import app
from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.loading import load_config, schema
from gradus.pipeline.runs.identity import STAGE_FILE
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.stage import Signals
from gradus.pipeline.stage_laws import check_stage
from gradus.stages import discover, listing

CONFIGS = [stage.config for stage in discover().values()]


def gradus(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output + result.stderr
    return result


@pytest.fixture
def finished(own_folder: Path) -> Path:
    gradus("run", "rloo.yaml", "--engine", "none")
    return own_folder


# The documentation


def test_the_page_asks_for_nothing_inside_the_package() -> None:
    page = (REPOSITORY / "docs" / "own-stage.md").read_text()
    assert "Save this as `rloo.py`" in page and "Save this as `rloo.yaml`" in page
    assert "Save this as `stages/" not in page and "Save this as `gradus/" not in page


def test_the_documented_algorithm_is_one_file_and_one_yaml(own_folder: Path) -> None:
    assert "rloo.yaml is valid.\nrloo: sft (4 steps) -> rloo (3 steps)" in gradus("check", "rloo.yaml").output
    shown = gradus("stages", "rloo:STAGE").output
    assert "reward against the mean of the others" in shown and "rloo.py" in shown and "Factor of the adv" in shown
    stage = discover()["rloo:STAGE"]
    check_stage(stage)
    assert doctest.testmod(sys.modules["rloo"]) == (0, 3)
    weights = stage.weigh(Signals(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2)), stage.config(stage="rloo", steps=1))
    assert weights.tolist() == [[1.0, -1.0]]
    gradus("run", "rloo.yaml", "--engine", "none")
    run = RunFolder(own_folder / "runs" / "rloo", CONFIGS)
    assert run.state() == "done"
    assert run.result(1)["algorithm"] == "rloo" and run.result(1)["steps"] == 3


def test_the_commands_of_the_page_are_those_that_were_tried() -> None:
    commands = documented("sh").strip().splitlines()
    assert commands[:2] == ["gradus check rloo.yaml", "gradus stages rloo:STAGE"]
    assert "check_stage(STAGE)" in commands[2] and commands[3] == "gradus run rloo.yaml"


# Wherever a run is opened


def test_a_run_finds_its_stage_again_from_any_folder(finished: Path, tmp_path_factory, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    sys.modules.pop("rloo")
    runs = ["--runs", str(finished / "runs")]
    assert "is complete" in gradus("resume", "rloo", *runs).output
    assert "reuse" in gradus("plan", "--name", "rloo", *runs).output
    assert json.loads(gradus("status", "rloo", "--json", *runs).stdout)["state"] == "done"
    gradus("fork", "rloo", "--from", "rloo", "--set", "stages.rloo.scale=2", "--no-run", *runs)
    gradus("resume", "rloo-fork", "--engine", "none", *runs)
    fork = RunFolder(finished / "runs" / "rloo-fork", CONFIGS)
    assert fork.state() == "done" and fork.config.stages[1].scale == 2
    assert fork.config.stages[1].stage == "rloo:STAGE" and fork.config.stages[1].label == "rloo"


def test_the_file_is_part_of_the_stage_s_code(finished: Path) -> None:
    run = RunFolder(finished / "runs" / "rloo", CONFIGS)
    recorded = json.loads((run.stage_dir(1) / STAGE_FILE).read_text())["code"]
    assert len(recorded["stages/rloo:STAGE"]) == 8
    (finished / "rloo.py").write_text(documented("python") + "\n# another version\n")
    assert "other code (stages/rloo:STAGE)" in gradus("plan", "--name", "rloo").output


def test_several_processes_find_the_stage(own_folder: Path) -> None:
    gradus("run", "rloo.yaml", "--engine", "none", "--set", "launch.processes=2", "--set", "policy.device=cpu")
    assert RunFolder(own_folder / "runs" / "rloo", CONFIGS).result(1)["steps"] == 3


def test_two_stages_of_one_algorithm_are_numbered_by_its_name(own_folder: Path) -> None:
    twice = (own_folder / "rloo.yaml").read_text() + '  - {stage: "rloo:STAGE", steps: 1}\n'
    (own_folder / "twice.yaml").write_text(twice)
    loaded = load_config("twice.yaml", ["stages.rloo-2.steps=7", "stages.rloo.scale=2"], CONFIGS)
    assert [(stage.label, stage.steps) for stage in loaded.config.stages] == [("sft", 4), ("rloo", 3), ("rloo-2", 7)]
    again = load_config("twice.yaml", ["stages.rloo-2.steps=7", "stages.rloo.scale=2"], CONFIGS)
    assert again.config == loaded.config


def test_a_comparison_takes_it_as_an_arm(own_folder: Path) -> None:
    from gradus.flows.compare.plan.budget import Budget
    from gradus.flows.compare.plan.comparison import make_plan

    loaded = load_config("rloo.yaml", ["task.size=700"], CONFIGS)
    arms, changes = "staged,dapo,rloo:STAGE,other=rloo:STAGE", ["staged.rloo.scale=3", "other.scale=2"]
    plan = make_plan(loaded, discover(), arms, Budget(60), changes, own_folder / "runs")
    trained = {arm.label: plan.arm(arm, 0).stages[-1] for arm in plan.arms}
    assert {label: stage.stage for label, stage in trained.items()} == {
        "staged": "rloo:STAGE", "dapo": "dapo", "rloo": "rloo:STAGE", "other": "rloo:STAGE",
    }  # fmt: skip
    assert [trained[label].scale for label in ("staged", "rloo", "other")] == [3, 1, 2]
    assert {stage.label for stage in trained.values()} == {"rloo", "dapo"}
    with pytest.raises(UserError, match=r"no module 'rlo'"):
        make_plan(loaded, discover(), "dapo,rlo:STAGE", Budget(60), [], own_folder / "runs")


def test_a_deployment_s_worker_looks_beside_the_configuration(own_folder: Path, tmp_path_factory, monkeypatch) -> None:
    from gradus.flows.deploy.worker import _load

    config = load_config("rloo.yaml", [], CONFIGS).config.model_dump(mode="json")
    asked = json.loads(json.dumps({"config": config, "source": str(own_folder / "rloo.yaml")}))
    monkeypatch.chdir(tmp_path_factory.mktemp("worker"))
    sys.modules.pop("rloo")
    loaded, stages = _load(asked)
    assert stages[loaded.config.stages[1].stage].name == "rloo"


def test_advice_can_be_written_for_such_a_chain(own_folder: Path) -> None:
    from gradus.flows.advise.rewrite import advised_config

    loaded = load_config("rloo.yaml", [], CONFIGS)
    assert advised_config(loaded, ["seed=3"], [], discover()).stages[1].label == "rloo"


def test_a_stage_may_borrow_the_options_of_a_built_in_one(own_folder: Path) -> None:
    (own_folder / "half.py").write_text(
        "from gradus.pipeline.stage import Needs, Stage\nfrom gradus.stages.dapo import DAPOConfig\n"
        "def weigh(signals, config):\n    return signals.rewards_PK / 2\n"
        "STAGE = Stage('half', 'half of it', DAPOConfig, weigh, lambda config: Needs())\n"
    )
    config = load_config("rloo.yaml", ["stages.1.stage=half:STAGE", "stages.1.overlong=0.5"], CONFIGS).config
    assert config.stages[1].overlong == 0.5 and config.stages[1].label == "half"
    check_stage(discover()["half:STAGE"])


def test_the_schema_leaves_its_options_open(own_folder: Path) -> None:
    import jsonschema

    described, valid = schema(CONFIGS), yaml_text.parse(documented("yaml"), "x").data
    jsonschema.validate(valid, described)
    valid["stages"][1]["stage"] = "rlooo"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(valid, described)


# Mistakes, before any compute

HEAD = "from gradus.pipeline.config import StageConfig\nfrom gradus.pipeline.stage import Needs, Stage\n"
MISTAKES = {
    "no such module": ("rlo:STAGE", "", ["no module 'rlo'", "importable from", "rloo.yaml line 18, stages.rlo.stage"]),
    "no such module in a package": ("rloo.deep:STAGE", "", ["no module 'rloo.deep'"]),
    "no such name": ("rloo:STAGES", "", ["rloo.py defines no `STAGES`", "did you mean `STAGE`?"]),
    "no stage": ("rloo:RLOOConfig", "", ["`rloo:RLOOConfig` is no stage", "which is of type", "Stage(name"]),
    "no reference": ("rloo:1", "", ["'rloo:1' is not the name of a stage", "`package.module:STAGE`"]),
    "an import that fails": (
        "broken:STAGE",
        "import nowhere_to_be_found\n",
        ["No module named 'nowhere", "broken.py:1"],
    ),
    "an error while importing": ("broken:STAGE", "\n\n1 / 0\n", ["ZeroDivisionError", "broken.py:3", "import broken"]),
    "the interpreter is left": ("broken:STAGE", "raise SystemExit(0)\n", ["SystemExit", "broken.py:1"]),
    "no Python": ("broken:STAGE", "x = 1\ndef f(:\n", ["SyntaxError", "broken.py:2"]),
    "a built-in name": (
        "broken:STAGE",
        HEAD + "STAGE = Stage('dapo', '', StageConfig, len, lambda config: Needs())\n",
        ["has the name of a built-in one", "got:      dapo"],
    ),
    "no option class": (
        "broken:STAGE",
        HEAD + "STAGE = Stage('mine', '', dict, len, lambda config: Needs())\n",
        ["has no option class", "a subclass of gradus.pipeline.config.StageConfig"],
    ),
    "no folder's name": (
        "broken:STAGE",
        HEAD + "STAGE = Stage('a/b', '', StageConfig, len, lambda config: Needs())\n",
        ["a name that no folder can have", "'a/b'"],
    ),
}


@pytest.mark.parametrize(("reference", "code", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_message_before_any_compute(
    reference: str, code: str, says: list[str], own_folder: Path
) -> None:
    (own_folder / "broken.py").write_text(code)
    text = documented("yaml").replace("rloo:STAGE", reference)
    (own_folder / "rloo.yaml").write_text(text)
    for command in (["check", "rloo.yaml"], ["run", "rloo.yaml", "--engine", "none"]):
        told = gradus(*command, code=2).stderr
        for words in says:
            assert words in told, told
        assert "Traceback" not in told and "where:    rloo.yaml line " in told
        assert all(part in told for part in ("got:", "expected:"))
    assert not (own_folder / "runs").exists()


def test_its_options_are_checked_like_those_of_a_built_in_one(own_folder: Path) -> None:
    told = gradus("check", "rloo.yaml", "--set", "stages.rloo.scal=1", code=2).stderr
    assert "unknown option `scal`" in told and "did you mean `scale`?" in told
    told = gradus("check", "rloo.yaml", "--set", "stages.rloo.scale=much", code=2).stderr
    assert "`scale` has a value it cannot have" in told


def test_an_unknown_name_says_how_to_name_one_of_your_own(own_folder: Path) -> None:
    told = gradus("check", "rloo.yaml", "--set", "stages.1.stage=dapoo", code=2).stderr
    assert "unknown stage `dapoo`" in told and "did you mean `dapo`?" in told
    assert "sft, srpo" in told and "`package.module:STAGE`" in told
    told = gradus("stages", "dapoo", code=2).stderr
    assert "did you mean `dapo`?" in told and "`package.module:STAGE`" in told


def test_a_module_that_is_gone_is_missed_by_name(finished: Path) -> None:
    sys.modules.pop("rloo")
    shutil.rmtree(finished / "__pycache__", ignore_errors=True)
    (finished / "rloo.py").unlink()
    told = gradus("resume", "rloo", code=2).stderr
    assert "no module 'rloo'" in told and "config.yaml" in told
    assert gradus("status").output.count("done") == 1, "a list of runs needs no stage's code"


def test_another_module_of_that_name_is_not_taken_for_it(own_folder: Path) -> None:
    (own_folder / "json.py").write_text("STAGE = 1\n")
    told = gradus("check", "rloo.yaml", "--set", "stages.1.stage=json:STAGE", code=2).stderr
    assert "another module called 'json' has been imported before" in told


# Published by installed packages


@pytest.fixture
def site(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages: one whose stage works, and one whose does not."""
    folder = own_folder / "site"
    (folder / "rloo_package").mkdir(parents=True)
    shutil.move(own_folder / "rloo.py", folder / "rloo_package" / "__init__.py")
    publish(folder, "rloo-package", "gradus.stages", {"rloo": "rloo_package:STAGE"})
    publish(folder, "broken-package", "gradus.stages", {"bad": "bad_package:STAGE", "dapo": "rloo_package:STAGE"})
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    (own_folder / "rloo.yaml").write_text(documented("yaml").replace('"rloo:STAGE"', "rloo"))
    return folder


def test_a_published_stage_goes_by_its_name(site: Path) -> None:
    gradus("run", "rloo.yaml", "--engine", "none")
    run = RunFolder(site.parent / "runs" / "rloo", CONFIGS)
    assert run.result(1)["algorithm"] == "rloo" and run.config.stages[1].stage == "rloo"
    assert run.config.stages[1].origin == "rloo_package:STAGE"


def test_the_listing_says_where_each_comes_from_and_survives_a_broken_one(site: Path) -> None:
    found = {(each.name, each.stage is None): each for each in listing()}
    assert found["rloo", False].origin == "rloo_package:STAGE, entry point of rloo-package 1.0"
    assert found["dapo", False].origin == "gradus"
    assert "no module 'bad_package'" in found["bad", True].problem
    assert "a built-in stage has this name" in found["dapo", True].problem
    shown = gradus("stages").output
    assert "entry point of broken-package 1.0" in shown and "no module 'bad_package'" in shown
    rows = json.loads(gradus("stages", "--json").stdout)["stages"]
    assert [row["name"] for row in rows if "problem" in row] == ["bad", "dapo"]


def test_a_broken_package_is_named_only_where_it_is_asked_for(site: Path) -> None:
    gradus("check", "rloo.yaml")
    told = gradus("check", "rloo.yaml", "--set", "stages.1.stage=bad", code=2).stderr
    assert "`bad_package:STAGE` cannot be imported" in told
    assert "did you mean `rloo`?" in gradus("check", "rloo.yaml", "--set", "stages.1.stage=rlo", code=2).stderr


def test_a_name_that_two_packages_publish_is_refused(site: Path) -> None:
    publish(site, "second-package", "gradus.stages", {"rloo": "second_package:STAGE"})
    sys.path.append(str(site / "nowhere"))  # another environment
    told = gradus("check", "rloo.yaml", code=2).stderr
    assert "several packages publish `rloo`" in told and "second-package 1.0" in told


def test_the_name_of_an_entry_point_is_the_stage_s(site: Path) -> None:
    publish(site, "third-package", "gradus.stages", {"leave-one-out": "rloo_package:STAGE"})
    told = gradus("check", "rloo.yaml", "--set", "stages.1.stage=leave-one-out", code=2).stderr
    assert "publishes a stage of another name" in told


def test_nothing_is_imported_unless_it_is_named(site: Path) -> None:
    gradus("check", "quickstart")
    assert "rloo_package" not in sys.modules
