"""The command line as a user meets it: a real run, what is said about it, exit codes, and no traceback, ever."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from command_line import Gradus
from rich.console import Console
from typer.testing import CliRunner

from gradus.flows import launch
from gradus.flows.cli import app
from gradus.flows.open_run import open_run
from gradus.flows.screen import progress
from gradus.flows.screen.options import describe_options
from gradus.pipeline.config import StageConfig
from gradus.pipeline.config.loading import load_config
from gradus.stages import discover

pytestmark = pytest.mark.usefixtures("quiet_process")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Gradus, str]:
    """A complete run called tiny, and what the command said."""
    gradus = Gradus(tmp_path_factory.mktemp("trained"))
    said = gradus("run", str(gradus.config), "--runs", str(gradus.runs), "--engine", "none").output
    return gradus, said


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_says_what_was_learned_and_how_to_go_on(trained: tuple[Gradus, str]) -> None:
    gradus, said = trained
    for stage, total in (("sft", 4), ("dapo", 2)):
        assert f"{stage}: step {total}/{total}" in said
        assert re.search(rf"{stage}: held-out accuracy \d\.\d+ -> \d\.\d+ \(", said)
    assert "What was learned: held-out accuracy went from" in said
    assert f"gradus ui tiny --runs {gradus.runs}" in said
    checkpoint = Path(re.search(r"Try it: gradus sample (\S+) ", said)[1])
    assert (checkpoint / "model.safetensors").is_file()
    summary = json.loads((gradus.runs / "tiny" / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["sft", "dapo"]


def test_status_tells_the_same(trained: tuple[Gradus, str]) -> None:
    gradus, _ = trained
    runs = ["--runs", str(gradus.runs)]
    (listed,) = (run for run in json.loads(gradus("status", "--json", *runs).stdout) if run["name"] == "tiny")
    assert (listed["state"], listed["done"], listed["total"]) == ("done", 2, 2)
    one = json.loads(gradus("status", "tiny", "--json", *runs).stdout)
    assert one == listed
    summary = json.loads((gradus.runs / "tiny" / "summary.json").read_text())
    for stage in summary["stages"]:
        stage["checkpoint"] = str(gradus.runs / "tiny" / stage["checkpoint"])  # the runs folder may move
    assert one["stages"] == summary["stages"] and one["accuracy_end"] == summary["accuracy_end"]
    assert re.search(r"tiny +2/2 .* done", gradus("status", *runs).output)
    assert "step-000002" in gradus("status", "tiny", *runs).output


def test_eval_repeats_the_recorded_accuracy(trained: tuple[Gradus, str]) -> None:
    gradus, _ = trained
    found = json.loads(gradus("eval", "tiny", "--json", "--runs", str(gradus.runs)).stdout)
    summary = json.loads((gradus.runs / "tiny" / "summary.json").read_text())
    assert found["accuracy"] == summary["accuracy_end"] and found["prompts"] == 20


def test_sample_gives_n_completions_and_the_seed_decides(trained: tuple[Gradus, str]) -> None:
    gradus, _ = trained
    ask = ["sample", "tiny", "1 + 2 =", "-n", "3", "--max-tokens", "5", "--runs", str(gradus.runs)]
    first, again, other = gradus(*ask).stdout, gradus(*ask).stdout, gradus(*ask, "--seed", "1").stdout
    assert first == again != other
    assert [line for line in first.splitlines() if re.match(r"[123]: ", line)]


def test_names_new_continued_and_refused(trained: tuple[Gradus, str]) -> None:
    gradus, _ = trained
    run = ["run", str(gradus.config), "--runs", str(gradus.runs), "--engine", "none"]
    again = gradus(*run, "--name", "tiny").output
    assert "stage sft is done already" in again and "stage dapo is done already" in again
    changed = gradus(*run, "--name", "tiny", "--set", "stages.dapo.lr=3e-4", code=2).stderr
    assert "stages.dapo.lr: 0.0001 -> 0.0003" in changed and "gradus fork tiny --from dapo" in changed
    assert "a run cannot have this name" in gradus(*run, "--name", "../x", code=2).stderr
    loaded = load_config(str(gradus.config), [], [stage.config for stage in discover().values()])
    told: list[str] = []
    opened = [open_run(loaded, gradus.runs, None, discover(), told.append).name for _ in range(2)]
    assert opened == ["tiny-2", "tiny-3"] and "this one is tiny-2" in told[0]


def test_a_broken_run_is_listed_and_hides_no_other(trained: tuple[Gradus, str]) -> None:
    gradus, _ = trained
    broken = gradus.runs / "broken"
    broken.mkdir()
    (broken / "run.json").write_text('{"name": "broken", "created": "2020-01-01"}')
    (broken / "config.yaml").write_text("name: broken\n")
    listed = {run["name"]: run for run in json.loads(gradus("status", "--json", "--runs", str(gradus.runs)).stdout)}
    assert listed["broken"]["state"].startswith("unreadable") and listed["tiny"]["state"] == "done"


def test_ctrl_c_ends_with_one_line_and_the_run_is_stopped(gradus: Gradus) -> None:
    process = gradus.process("run", "tiny.yaml", "--engine", "none", "--set", "stages.sft.steps=100000")
    assert process.stdout is not None
    for line in process.stdout:
        if "sft: stage 1" in line:
            break
    shown = gradus("status", "--runs", str(gradus.runs)).output
    assert "running" in shown
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    (line,) = errors.strip().splitlines()
    assert line == "stopped: what was finished is kept; to continue: gradus resume tiny"
    assert re.search(r"stopped at sft step \d+/100000", gradus("status", "--runs", str(gradus.runs)).output)


def test_an_unknown_error_is_one_line_and_a_traceback_in_the_run_folder(
    gradus: Gradus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(launch, "launch", broken)
    run = ["run", str(gradus.config), "--runs", str(gradus.runs)]
    said = gradus(*run, code=1).stderr
    log = gradus.runs / "tiny" / "error.log"
    assert said.startswith("ZeroDivisionError: by nothing") and str(log) in said
    assert "Traceback" in log.read_text() and "in broken" in log.read_text()
    debugged = CliRunner().invoke(app.app, ["--debug", *run])
    assert debugged.exit_code == 1 and "in broken" in debugged.stderr


# --- before a run -----------------------------------------------------------------------------------------------------


def test_check_says_the_order_or_what_is_wrong(gradus: Gradus) -> None:
    assert "sft (4 steps) -> dapo (2 steps)" in gradus("check", str(gradus.config)).output
    wrong = gradus("check", str(gradus.config), "--set", "stages.dapo.group_size=1", code=2)
    assert "at least 2" in wrong.stderr and not wrong.stdout
    assert "2 problems" in gradus(
        "check", str(gradus.config), "--set", "task.demonstrations=none", "--set", "tracking.uri=x", code=2
    ).stderr  # fmt: skip


def test_a_mistake_leaves_no_run_folder(gradus: Gradus) -> None:
    gradus("run", str(gradus.config), "--runs", str(gradus.runs), "--set", "stages.dapo.group_size=1", code=2)
    gradus("run", str(gradus.config), "--runs", str(gradus.runs), "--set", "task.demonstrations=none", code=2)
    assert not gradus.runs.exists()


def test_config_prints_what_loads_and_the_schema(gradus: Gradus, tmp_path: Path) -> None:
    resolved = gradus("config", str(gradus.config), "--set", "seed=7").stdout
    (tmp_path / "resolved.yaml").write_text(resolved)
    assert gradus("config", str(tmp_path / "resolved.yaml")).stdout == resolved
    assert "seed: 7" in resolved and "max_skipped: 5" in resolved
    described = json.loads(gradus("config", "--schema").stdout)
    assert described["properties"]["stages"]["items"]["discriminator"]["propertyName"] == "stage"
    gradus("config", code=2)


def test_the_hub_is_asked_and_what_it_says_is_told(gradus: Gradus) -> None:
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(gradus.folder / "hf")}
    asked = ["check", "tiny.yaml", "--set", "policy={path: Qwen/Qwen3-0.6B}"]
    code, _, errors = gradus.finished(*asked, **unreachable)
    assert code == 2 and "the Hub cannot be reached" in errors and "Qwen/Qwen3-0.6B" in errors
    code, _, errors = gradus.finished(*asked, **unreachable, HF_HUB_OFFLINE="1")
    assert code == 2 and "not in its cache" in errors


def test_listings_cover_everything_there_is(gradus: Gradus) -> None:
    said = gradus("stages").output
    for stage in discover().values():
        assert stage.name in said
        for option in describe_options(stage.config, StageConfig):
            assert option["name"] in said and option["description"], option
    meaning = "Batches to train on, or fewer where a rule of `until` or the `guard` ends the stage."
    steps = {"name": "steps", "type": "whole number", "default": "required", "description": meaning}
    assert steps in json.loads(gradus("stages", "--json").stdout)["common_options"]
    assert "exact_answer" in gradus("rewards").output
    assert gradus("--version").output.startswith("gradus ")


def test_wrong_names_are_answered_in_words(gradus: Gradus) -> None:
    runs = ["--runs", str(gradus.runs)]
    assert "there is no run called 'x'" in gradus("status", "x", *runs, code=2).stderr
    assert "no such checkpoint or run" in gradus("eval", "x", *runs, code=2).stderr
    assert "no such checkpoint or run" in gradus("sample", "x", "1", *runs, code=2).stderr
    assert "no runs folder" in gradus("ui", *runs, code=2).stderr
    assert "no runs in" in gradus("status", *runs).output
    assert gradus("sync", *runs).output == "MLflow has everything.\n"


# --- the terminal -----------------------------------------------------------------------------------------------------


def test_a_terminal_gets_one_live_line_and_finished_stages_stay() -> None:
    console = Console(force_terminal=True, width=100, record=True, color_system=None)
    with progress.watching(console) as observer:
        assert isinstance(observer, progress.LiveObserver)
        observer.prepared(0.1, (0.05, 0.15))
        observer.stage_started("gfpo", 1, 3, 10, 0)
        observer.step_done("gfpo", 4, 10, {"reward/mean": 0.5, "throughput/tokens_per_second": 1234.5})
        observer.progress.refresh()
        shown = console.export_text(clear=False)
        observer.stage_finished("gfpo", {"accuracy_before": 0.4, "accuracy_after": 0.625, "steps": 10, "seconds": 61})
    assert "2/3 gfpo" in shown and "4/10" in shown and "reward 0.500" in shown and "1,234 tokens/s" in shown
    assert "gfpo: held-out accuracy 0.400 -> 0.625" in console.export_text()


def test_a_pipe_gets_a_line_a_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=200)
    with progress.watching(console) as observer:
        observer.stage_started("sft", 0, 1, 100, 0)
        for step in range(1, 101):
            observer.step_done("sft", step, 100, {"update/loss": 1.0})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 and lines[-1].startswith("sft: step 100/100, loss 1.000")
    assert "\x1b" not in "".join(lines)
