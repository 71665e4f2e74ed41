"""The public Python API: its names, its results, and that a library neither prints nor ends the process."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command_line import TINY, Gradus
from paths import REPOSITORY, search_path
from small_pipeline import pipeline, write_task

import gradus
from gradus.flows import launch
from gradus.flows.compare.run import jobs
from gradus.flows.order import run_plain
from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config.options import identity
from gradus.pipeline.runs.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("untracked")

PUBLIC = [
    "Comparison",
    "Evaluation",
    "Needs",
    "PipelineConfig",
    "Run",
    "RunInterrupted",
    "Signals",
    "Stage",
    "StageConfig",
    "StageFailed",
    "StageResult",
    "UserError",
    "__version__",
    "compare",
    "evaluate",
    "fork",
    "load_config",
    "load_run",
    "resume",
    "run",
    "sample",
]
TRAINING = ["compare", "fork", "resume", "run"]
FUNCTIONS = [*TRAINING, "evaluate", "load_config", "load_run", "sample"]
PAGE = (REPOSITORY / "docs" / "python-api.md").read_text()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with tiny.yaml and a complete run of it called tiny; tests do not change it."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradus.pipeline.tracking.client.start_uploader", _no_uploader)
        gradus.run(str(folder / "tiny.yaml"), runs=folder / "runs", engine="none")
    yield folder


def _no_uploader(path: Path) -> Any:
    from gradus.pipeline.tracking.client import UploaderHandle

    return UploaderHandle(path, None, "")


@pytest.fixture(autouse=True)
def clean_environment() -> Iterator[None]:
    """The API keeps libraries quiet by variables of the environment, which in these tests is everyone's."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


# --- names ------------------------------------------------------------------------------------------------------------


def test_the_public_names_are_these_and_documented() -> None:
    assert gradus.__all__ == PUBLIC and set(PUBLIC) <= set(dir(gradus))
    for name in PUBLIC[:12] + FUNCTIONS:
        assert getattr(gradus, name).__doc__, name
    for name in FUNCTIONS:
        named = ["UserError", *(["StageFailed", "RunInterrupted"] if name in TRAINING else [])]
        raises = " ".join(getattr(gradus, name).__doc__.split()).partition("Raises: ")[2]
        assert all(each in raises for each in named), f"{name} does not name its errors"
        assert f"## {name}\n" in PAGE and f"| [`{name}`](#{name}) |" in PAGE
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = gradus.nonsense  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((REPOSITORY / "src" / "gradus" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {node.module: tuple(alias.name for alias in node.names) for node in imports}
    assert seen == gradus._HOMES
    assert sorted([name for names in seen.values() for name in names] + ["__version__"]) == sorted(PUBLIC)


def test_import_is_light_and_reading_a_run_needs_no_torch(trained: Path) -> None:
    code = """
import sys
import gradus
heavy = {"torch", "pydantic", "numpy", "pandas", "rich", "typer", "transformers", "prefect", "mlflow"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert gradus.load_run("tiny").curves() and gradus.load_config("tiny.yaml").name == "tiny"
assert not (heavy - {"pydantic", "rich", "typer"}) & set(sys.modules), heavy & set(sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": search_path()}
    subprocess.run([sys.executable, "-c", code], cwd=trained, env=environment, check=True, timeout=60)


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_run_is_a_plain_object(trained: Path) -> None:
    run = gradus.load_run("tiny", runs=trained / "runs")
    assert (run.name, run.path, run.state) == ("tiny", trained / "runs" / "tiny", "done")
    assert run == gradus.load_run(trained / "runs" / "tiny")
    assert isinstance(run.config, gradus.PipelineConfig) and run.config.seed == 0
    assert [(each.name, each.algorithm, each.steps) for each in run.stages] == [("sft", "sft", 4), ("dapo", "dapo", 2)]
    assert run.summary is not None and run.summary["accuracy_end"] == run.stages[-1].accuracy_after
    for stage in run.stages:
        assert (stage.checkpoint / "model.safetensors").is_file()
        assert stage.interval[0] <= stage.accuracy_after <= stage.interval[1]
        assert stage.seconds > 0 and stage.tokens > 0 and stage.rollouts > 0 and stage.events == ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.name = "other"  # type: ignore[misc]


def test_curves_are_ready_for_pandas(trained: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rows = gradus.load_run("tiny", trained / "runs").curves()
    table = pandas.DataFrame(rows)
    assert list(table.columns) == ["run", "stage", "algorithm", "step", "metric", "value"]
    assert table["value"].dtype == float and table["step"].dtype == int
    assert list(table["stage"].unique()) == ["sft", "dapo"] and set(table["run"]) == {"tiny"}
    rewards = table[(table.stage == "dapo") & (table.metric == "reward/mean")]
    assert list(rewards["step"]) == [1, 2] and rewards["value"].map(math.isfinite).all()


def test_evaluate_and_sample(trained: Path) -> None:
    run = gradus.load_run("tiny", trained / "runs")
    measured = gradus.evaluate("tiny", runs=trained / "runs")
    assert (measured.stage, measured.step, measured.prompts, measured.errors) == ("dapo", 2, 20, 0)
    assert measured.accuracy == run.stages[-1].accuracy_after and measured.interval == run.stages[-1].interval
    assert gradus.evaluate(run.stages[0].checkpoint).stage == "sft"
    texts = gradus.sample(run, "1 + 2 =", n=3, seed=7)
    assert len(texts) == 3 and all(isinstance(text, str) for text in texts)
    assert texts == gradus.sample("tiny", "1 + 2 =", n=3, seed=7, runs=trained / "runs")
    with pytest.raises(gradus.UserError, match="no such checkpoint or run"):
        gradus.evaluate("nowhere", runs=trained / "runs")


# --- configurations ---------------------------------------------------------------------------------------------------


def test_a_file_a_mapping_and_a_typed_configuration_are_one(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    data = yaml_text.parse(TINY, "tiny").data
    from_file = gradus.load_config("tiny.yaml")
    own = type(from_file).model_validate(data)
    given = [data, own, from_file, trained / "tiny.yaml", {**data, "stages": tuple(from_file.stages)}]
    for config in given:
        assert gradus.load_config(config) == from_file
        assert identity(gradus.load_config(config)) == identity(from_file)
    before = gradus.load_run("tiny")
    for config in (data, from_file):  # the complete run is continued, so nothing is trained
        assert gradus.run(config, "tiny", engine="none") == before
    with pytest.raises(gradus.UserError, match="begun with another configuration"):
        gradus.run(data, "tiny", {"seed": 1}, engine="none")


def test_relative_paths_of_a_mapping_start_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = pipeline([{"stage": "sft"}]).model_dump(mode="json", exclude_unset=True)
    for config in (data, {**data, "task": {**data["task"], "path": Path("task.jsonl")}}):
        assert gradus.load_config(config).task.path == str(tmp_path / "task.jsonl")  # type: ignore[union-attr]
    run = gradus.run(data, engine="none")
    assert run.state == "done" and RunFolder(run.path, []).base_dir == tmp_path


def test_overrides_are_a_mapping_or_words(trained: Path) -> None:
    path = trained / "tiny.yaml"
    words = ["stages.dapo.lr=0.00001", "stages.dapo.betas=[0.9, 0.99]", "task.dataset=chain_sum"]
    values = {"stages.dapo.lr": 1e-5, "stages.dapo.betas": (0.9, 0.99), "task.dataset": "chain_sum"}
    changed = gradus.load_config(path, values)
    assert changed == gradus.load_config(path, words) and changed.stages[1].lr == 1e-5
    with pytest.raises(gradus.UserError, match="a mapping or a list"):
        gradus.load_config(path, "seed=1")


def test_a_large_configuration_is_tried_at_toy_size(tmp_path: Path) -> None:
    run = gradus.run("gsm8k-qwen", tiny=True, runs=tmp_path, engine="none")
    assert run.state == "done" and all(stage.steps < 20 for stage in run.stages)


def test_errors_are_those_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = Gradus(tmp_path)
    monkeypatch.chdir(tmp_path)
    wrong = TINY.replace("group_size", "groupsize").replace("steps: 4", "steps: none")
    command.config.write_text(wrong)
    with pytest.raises(gradus.UserError) as raised:
        gradus.run("tiny.yaml", engine="none")
    assert command("run", "tiny.yaml", "--engine", "none", code=2).stderr == f"{raised.value}\n"
    assert "tiny.yaml line 23, stages.dapo.groupsize" in str(raised.value)
    with pytest.raises(gradus.UserError) as raised:
        gradus.run(yaml_text.parse(wrong, "tiny").data, engine="none")
    assert "where:    <configuration>, stages.dapo.groupsize" in str(raised.value)
    assert "where:    <configuration>, stages.sft.steps" in str(raised.value)
    with pytest.raises(gradus.UserError, match=r"where: +--set stages\.dapo\.stpes=3"):
        gradus.run(yaml_text.parse(TINY, "tiny").data, overrides={"stages.dapo.stpes": 3}, engine="none")
    assert not (tmp_path / "runs").exists()


def test_refusals_are_words(trained: Path) -> None:
    runs = trained / "runs"
    for call in (lambda: gradus.load_run("x", runs), lambda: gradus.resume("x", runs=runs, engine="none")):
        with pytest.raises(gradus.UserError, match="there is no run called 'x'"):
            call()
    with pytest.raises(gradus.UserError, match="no such engine"):
        gradus.resume("tiny", runs=runs, engine="ray")  # type: ignore[arg-type]
    with pytest.raises(gradus.UserError, match="has no stage `grpo`"):
        gradus.fork("tiny", "grpo", runs=runs, engine="none")
    for seeds in (0, [1, 1], [-1]):
        with pytest.raises(gradus.UserError, match="these are no seeds"):
            gradus.compare(trained / "tiny.yaml", seeds=seeds, runs=runs)


# --- in a process that is not ours ------------------------------------------------------------------------------------

STRIKE = """\
import os, pathlib, signal

def strike(prompt, completion):
    if pathlib.Path("strike").exists():
        trainer = int(pathlib.Path("strike").read_text())
        pathlib.Path("strike").unlink()
        os.kill(trainer, signal.SIGINT)
    return float(len(completion) % 3)
"""


def test_an_interrupt_finishes_the_step_and_does_not_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(STRIKE)
    data = yaml_text.parse(TINY, "tiny").data
    data |= {"rewards": [{"reward": "mine:strike", "time_limit": 60}], "reward_workers": 1}
    data |= {"stages": data["stages"][1:], "checkpoints": {"every_steps": 100}}
    undisturbed = gradus.run(data, "undisturbed", {"stages.dapo.steps": 4}, engine="none")
    folder = gradus.fork("undisturbed", "dapo", new_name="tiny", train=False)
    assert folder.state == "stopped" and folder.stages == ()
    begun = threading.Event()

    class Strikes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("dapo: step 1/"):
                begun.set()
                (tmp_path / "strike.new").write_text(str(os.getpid()))
                (tmp_path / "strike.new").rename(tmp_path / "strike")

    log, handlers = logging.getLogger("gradus"), [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    handler = Strikes()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with pytest.raises(gradus.RunInterrupted, match=r"gradus.resume\('tiny', runs='.*/runs'\) continues it"):
            gradus.resume("tiny", engine="none")
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    assert begun.is_set() and issubclass(gradus.RunInterrupted, KeyboardInterrupt)
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers
    stopped = gradus.load_run("tiny")
    assert stopped.state == "stopped" and stopped.summary is None
    steps = [row["step"] for row in stopped.curves() if row["metric"] == "reward/mean"]
    assert steps and max(steps) < 4
    resumed = gradus.resume("tiny", engine="none")
    assert resumed.state == "done"
    weights = [(run.stages[-1].checkpoint / "model.safetensors").read_bytes() for run in (resumed, undisturbed)]
    assert weights[0] == weights[1], "a resumed run has the same weights"


def test_another_thread_trains_and_one_run_at_a_time(trained: Path, tmp_path: Path) -> None:
    found: list[gradus.Run] = []
    config = gradus.load_config(trained / "tiny.yaml")

    def train() -> None:
        found.append(gradus.run(config, runs=tmp_path, engine="none"))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join(timeout=200)
    assert [run.state for run in found] == ["done"]
    first, second = found[0], gradus.load_run("tiny", trained / "runs")
    weights = [(run.stages[-1].checkpoint / "model.safetensors").read_bytes() for run in (first, second)]
    assert weights[0] == weights[1]
    with launch._alone(), pytest.raises(gradus.UserError, match="trains another run already"):
        gradus.run(config, "other", runs=tmp_path, engine="none")


def test_nothing_is_printed_unless_it_is_asked_for(
    trained: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="gradus")
    gradus.run(trained / "tiny.yaml", "tiny", runs=trained / "runs", engine="none")
    assert capfd.readouterr() == ("", "")
    assert any("stage sft is done already" in record.getMessage() for record in caplog.records)
    gradus.run(trained / "tiny.yaml", "tiny", runs=trained / "runs", engine="none", progress=True)
    assert "stage sft is done already" in capfd.readouterr().out


# --- the page and the example -----------------------------------------------------------------------------------------


@pytest.fixture
def trained_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of a comparison are trained in this process: others would import everything again."""
    monkeypatch.setattr(jobs.LocalTrainer, "train", lambda self, run: run_plain(run.path, Observer()))
    monkeypatch.setattr("gradus.flows.compare.report.publish.deliver", lambda folder: None)
    monkeypatch.setattr("gradus.flows.compare.report.publish.deliver_rest", lambda folder: None)


def test_the_examples_of_the_page_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (config,) = [text for language, text in blocks if language == "yaml"]
    assert config == TINY
    Path("tiny.yaml").write_text(config)
    namespace: dict[str, Any] = {}
    for language, text in blocks:
        if language == "python":
            exec(compile(text, "docs/python-api.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert printed.startswith("done\nsft 0.0 -> ") and "unknown option `stpes`" in printed
    comparison = namespace["found"]
    assert comparison.name == "tiny-compare" and (comparison.path / "report.html").is_file()
    assert {run.name for run in comparison.runs} == {"base-seed-0", "gfpo-seed-0", "staged-seed-0"}
    words = "gradus compare tiny.yaml --arms gfpo,staged --seeds 0, --budget 24 --parallel 1 --set task.validation=10"
    assert comparison.report["command"] == f"{words} --runs runs --engine none"
    assert {row["run"] for row in comparison.curves()} == {run.name for run in comparison.runs}
    assert len(namespace["texts"]) == 3 and namespace["run"].name == "longer"
    assert [stage.steps for stage in namespace["run"].stages] == [8, 4]
    named = set(re.findall(r"`(?:gradus\.)?(\w+)`", PAGE))
    assert {name for name in PUBLIC if name not in ("StageResult", "__version__")} <= named


def test_a_failed_comparison_says_why(trained: Path, tmp_path: Path, trained_here: None) -> None:
    with pytest.raises(gradus.StageFailed, match=r"3 of 3 runs failed \(base seed 0: .*; the same command tries them"):
        gradus.compare(trained / "tiny.yaml", "gfpo,staged", 1, "24", runs=tmp_path, engine="none", parallel=1)


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("one_loop", REPOSITORY / "examples" / "one_loop.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_loop_on_one_page_learns(capsys: pytest.CaptureFixture[str]) -> None:
    rewards, moved = example().train(25)
    assert len(rewards) == 25 and all(map(math.isfinite, rewards)) and moved > 0
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1
    assert len(re.findall(r"^step +\d+  reward 0\.\d+", capsys.readouterr().out, re.MULTILINE)) == 3
