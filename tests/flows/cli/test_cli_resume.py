"""The command line around resuming, as a user meets it: what a launch would do, going on, beginning anew, verifying."""

from __future__ import annotations

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Gradus
from rich.console import Console
from trained_chain import DONE, PATHED, Chain, flip, table

from gradus.flows import launch
from gradus.pipeline.common import locks
from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.common.files import beside, leftovers
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.records import read_sealed, write_sealed
from gradus.pipeline.runs.checkpoint import NO_ROOM, checkpoints_in
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking import client
from gradus.pipeline.tracking.client import UploaderHandle

pytestmark = pytest.mark.usefixtures("quiet_process", "untracked")

# --- plan -------------------------------------------------------------------------------------------------------------


def test_plan_of_a_new_run(gradus: Gradus) -> None:
    said = gradus("plan", str(gradus.config), "--runs", str(gradus.runs)).stdout
    assert table(said) == [["sft", "4", "run", "new run"], ["dapo", "2", "run", "new run"]]
    assert f"`gradus run {gradus.config} --runs {gradus.runs}` begins this new run, tiny." in said
    assert not gradus.runs.exists()
    named = gradus("plan", str(gradus.config), "--name", "other", "--runs", str(gradus.runs)).stdout
    assert "--name other" in named and "begins this new run, other." in named
    assert "nothing to plan" in gradus("plan", code=2).stderr
    assert "no run called 'x'" in gradus("plan", "--name", "x", "--runs", str(gradus.runs), code=2).stderr


def test_plan_of_a_complete_run_and_of_one_that_stopped(chain: Chain) -> None:
    said = chain.tell("plan", "chain.yaml")
    assert table(said) == [["sft", "4", "reuse", DONE], ["dapo", "2", "reuse", DONE], ["gfpo", "2", "reuse", DONE]]
    assert "chain is complete: nothing is left to do." in said
    assert "`gradus run chain.yaml` without --name begins a new run, chain-2." in said
    chain.stop_after(1, 1)
    said = chain.tell("plan", "--name", "chain")
    assert table(said) == [
        ["sft", "4", "reuse", DONE],
        ["dapo", "2", "resume at step 1", "stopped after step 1"],
        ["gfpo", "2", "run", "comes after dapo"],
    ]
    assert said.endswith("\n`gradus resume chain` does this.\n")
    (chain.run().stage_dir(1) / "failure.json").write_text('{"error": "the moon was full", "time": ""}')
    said = chain.tell("plan", "--name", "chain")
    assert ["dapo", "2", "resume at step 1", "failed: the moon was full"] in table(said)


def test_what_only_looks_at_a_complete_run_imports_nothing_slow(chain: Chain) -> None:
    commands = [["plan", "--name", "chain"], ["status", "chain"], ["verify", "chain"]]
    commands += [["resume", "chain"], ["fork", "chain", "--from", "gfpo", "--no-run"]]
    code = f"""
import sys
from gradus.flows.cli.app import app
for command in {commands}:
    app(command, standalone_mode=False)
    slow = {{"torch", "transformers", "prefect", "mlflow"}} & set(sys.modules)
    assert not slow, (command, slow)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=chain.folder, capture_output=True, text=True, env=PATHED)
    assert ended.returncode == 0, ended.stderr
    assert "chain is complete: nothing is left to do." in ended.stdout


def test_plan_needs_only_the_checkpoints_that_a_launch_needs(chain: Chain) -> None:
    chain.stop_after(2, 1)
    (Path(chain.run().result(0)["checkpoint"]) / "gradus.json").write_text("{")
    assert [row[2] for row in table(chain.tell("plan", "--name", "chain"))] == ["reuse", "reuse", "resume at step 1"]
    (Path(chain.run().result(1)["checkpoint"]) / "gradus.json").write_text("{")
    (_, dapo, gfpo) = table(chain.tell("plan", "--name", "chain"))
    assert (dapo[2], gfpo[3]) == ("resume at step 1", "comes after dapo") and dapo[3].startswith(
        "its checkpoint is gone or damaged: "
    )


def test_plan_tells_what_drifted_field_by_field_and_the_two_ways_on(chain: Chain) -> None:
    chain.stop_after(2, 1)
    changes = ["--set", "stages.gfpo.lr=5e-5", "--set", "stages.gfpo.schedule=linear"]
    said = chain.tell("plan", "chain.yaml", "--name", "chain", *changes)
    assert table(said)[1:] == [["dapo", "2", "reuse", DONE], ["gfpo", "2", "run", "its configuration changed"]]
    assert '\n  gfpo.lr: 0.0001 -> 5e-05\n  gfpo.schedule: "constant" -> "linear"\n' in said
    assert "`gradus run chain.yaml --name chain --set" in said and "refuses this" in said
    assert re.search(r"\n  gradus resume chain +continues with its own configuration\n", said)
    sets = "--set stages.gfpo.lr=5e-05 --set stages.gfpo.schedule=linear"
    assert f"\n  gradus fork chain --from gfpo {sets}  a new run that shares what is done before gfpo\n" in said
    planned = json.loads(chain.tell("plan", "--name", "chain", *changes, "--json"))
    assert planned["refused"] and [each["action"] for each in planned["stages"]] == ["reuse", "reuse", "run"]
    assert planned["stages"][2]["changes"] == ["gfpo.lr: 0.0001 -> 5e-05", 'gfpo.schedule: "constant" -> "linear"']


def test_plan_notices_the_policy_the_task_and_what_all_stages_share(chain: Chain) -> None:
    said = chain.tell("plan", "chain.yaml", "--name", "chain", "--set", "policy.tokenizer.vocabulary=299")
    assert [row[2:] for row in table(said)] == [["run", "the policy changed"]] * 3
    assert "\n  policy.tokenizer.vocabulary: 300 -> 299\n" in said and "gradus fork" not in said
    said = chain.tell(
        "plan", "chain.yaml", "--name", "chain", "--set", "task.size=151", "--set", "policy.dtype=bfloat16"
    )
    assert [row[3] for row in table(said)] == ["the policy and the task changed"] * 3
    assert "task.size: 150 -> 151" in said and said.count("policy.dtype: ") == 1
    said = chain.tell("plan", "chain.yaml", "--name", "chain", "--set", "sampling.max_tokens=12")
    assert [row[3] for row in table(said)] == ["its configuration changed", "comes after sft", "comes after sft"]
    assert said.count("sampling.max_tokens: 16 -> 12") == 1
    fewer = chain.tell(
        "plan", "chain.yaml", "--name", "chain", "--set", "stages=[{stage: sft, steps: 4, prompts_per_step: 8}]"
    )
    assert "stages.dapo: {" not in fewer and "  dapo: {" in fewer and "refuses this" in fewer


def test_plan_tells_of_other_code_in_a_line_a_stage_and_of_runtime_options(chain: Chain) -> None:
    file = chain.run().stage_dir(1) / "stage.json"
    known = read_sealed(file) or {}
    known["code"] |= {"torch": "1.0", "gradus.pipeline.training": "old"}
    write_sealed(file, known)
    said = chain.tell("plan", "chain.yaml", "--name", "chain", "--set", "checkpoints.keep=5")
    (line,) = (line for line in said.splitlines() if "other code" in line)
    assert line == "dapo was begun with other code (gradus.pipeline.training, torch); what is done is kept"
    assert [row[2] for row in table(said.replace(f"{line}\n", ""))] == ["reuse"] * 3
    chain.stop_after(2, 1)
    said = chain.tell("plan", "chain.yaml", "--name", "chain", "--set", "checkpoints.keep=5")
    assert "does this, with checkpoints.keep: 9 -> 5." in said


# --- resume -----------------------------------------------------------------------------------------------------------


def test_a_complete_run_has_nothing_to_resume(chain: Chain) -> None:
    said = chain.tell("resume", "chain")
    assert said.startswith("chain is complete: nothing to resume.")
    assert "gradus resume chain --from gfpo" in said and "gradus fork chain --from gfpo --set KEY=VALUE" in said


def test_resume_goes_on_to_the_same_result(chain: Chain) -> None:
    undisturbed = chain.contents()
    chain.stop_after(1, 1)
    said = chain.tell("resume", "chain")
    assert ["dapo", "2", "resume at step 1", "stopped after step 1"] in [row[:4] for row in table(said)]
    assert "dapo: stage 2 of 3, 2 steps, continued after step 1" in said and "What was learned" in said
    assert chain.contents() == undisturbed and chain.run().state() == "done"


def test_from_a_stage_keeps_what_was_there_as_numbered_attempts(chain: Chain) -> None:
    undisturbed = chain.contents()
    said = chain.tell("resume", "chain", "--from", "dapo")
    assert ["dapo", "2", "run", "again, as asked; what is there is kept as attempt 1"] in table(said)
    assert "stage sft is done already" in said and "dapo: stage 2 of 3, 2 steps\n" in said
    said = chain.tell("resume", "chain", "--from", "gfpo")
    assert ["gfpo", "2", "run", "again, as asked; what is there is kept as attempt 2"] in table(said)
    attempts = [[path.name for path in chain.run().attempts(index)] for index in range(3)]
    assert attempts == [[], ["02-dapo.attempt-1"], ["03-gfpo.attempt-1", "03-gfpo.attempt-2"]]
    assert chain.contents() == undisturbed
    told = chain.tell("status", "chain")
    assert "  gfpo, set aside: runs/chain/stages/03-gfpo.attempt-2/" in told and "(handed over)" in told


def test_the_summary_goes_first_and_the_last_stage_next(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = RunFolder.set_aside, []

    def set_aside(run: RunFolder, index: int) -> Path | None:
        seen.append((index, (run.path / "summary.json").exists(), locks.holder(run.path) is not None))
        if index == 1:
            raise KeyboardInterrupt  # as a kill half-way
        return real(run, index)

    monkeypatch.setattr(RunFolder, "set_aside", set_aside)
    said = chain.tell("resume", "chain", "--from", "sft", code=130)
    assert said.endswith("stopped: what was finished is kept; to continue: gradus resume chain\n")
    assert seen == [(2, False, True), (1, False, True)]
    monkeypatch.undo()
    assert [row[2] for row in table(chain.tell("plan", "--name", "chain"))] == ["reuse", "reuse", "run"]


def test_refusals_are_words_and_change_nothing(chain: Chain) -> None:
    before = sorted(str(path) for path in chain.runs.rglob("*"))
    assert "has no stage `x`" in chain.tell("resume", "chain", "--from", "x", code=2)
    assert "there is no run called 'x'" in chain.tell("resume", "x", code=2)
    for command in ("resume", "status", "verify"):
        said = chain.tell(command, "runs/chain/", code=2)
        assert "a run goes by its name here" in said and "expected: `chain`" in said
    with locks.hold(chain.run().path):
        said = chain.tell("resume", "chain", "--from", "sft", code=2)
        assert "another process is working on the run 'chain'" in said and "process " in said
        assert "another process is working" in chain.tell("run", "chain.yaml", "--name", "chain", code=2)
    after = sorted(str(path) for path in chain.runs.rglob("*"))
    assert after == before
    chain.stop_after(1, 1)
    said = chain.tell("resume", "chain", "--from", "gfpo", code=2)
    assert "there is nothing to start gfpo from yet" in said and "`gradus resume chain` continues the run" in said
    assert "stage dapo has no result" in said
    (chain.run().path / "start.json").unlink()
    assert "nothing to start sft from yet" in chain.tell("resume", "chain", "--from", "sft", code=2)


def test_a_damaged_last_checkpoint_of_a_complete_run_is_made_again(chain: Chain) -> None:
    undisturbed = chain.contents()
    flip(Path(chain.run().result(2)["checkpoint"]) / "model.safetensors")
    said = chain.tell("resume", "chain")
    assert "chain was complete, but the checkpoint of its last stage is damaged (altered: model.safetensors)" in said
    assert ["gfpo", "2", "resume at step 1", "its checkpoint is damaged"] in table(said)
    assert chain.contents() == undisturbed and chain.run().summary()
    assert "nothing to resume" in chain.tell("resume", "chain")


def test_a_launch_that_does_nothing_is_no_success(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    chain.stop_after(2, 1)
    monkeypatch.setattr(launch, "_engine", lambda *_: lambda path, observer: {"stages": []})
    said = chain.tell("resume", "chain", code=1)
    assert said.endswith("the launch took no steps, and chain is not complete\nto continue: gradus resume chain\n")


def test_run_with_a_name_takes_over_runtime_options_and_refuses_others(chain: Chain) -> None:
    said = chain.tell(
        "run", "chain.yaml", "--name", "chain", "--set", "checkpoints.keep=5", "--set", "tracking.samples=3"
    )
    assert "\ncontinues with tracking.samples: 16 -> 3\ncontinues with checkpoints.keep: 9 -> 5\n" in f"\n{said}"
    assert chain.run().config.checkpoints.keep == 5
    said = chain.tell("run", "chain.yaml", "--name", "chain", "--set", "stages.gfpo.lr=5e-5", code=2)
    assert said.splitlines()[0] == "the run 'chain' was begun with another configuration"
    assert "stages.gfpo.lr: 0.0001 -> 5e-05" in said
    assert "`gradus fork chain --from gfpo --set stages.gfpo.lr=5e-05`" in said and "without" not in said


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "there is no space left on the disk (runs/x)"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "there is no space left on the disk: Disk quota exceeded"),
        (RuntimeError("I/O error: No space left (os error 28)"), "there is no space left on the disk: I/O error"),
        (StageFailed("5 updates in a row\nwere skipped"), "5 updates in a row were skipped"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), "Permission denied: runs/x"),
        (OSError(errno.EROFS, "Read-only file system", "runs/x"), "Read-only file system: runs/x"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (MemoryError(), "memory ran out: no details\na smaller token_budget"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory ran out: CUDA out of memory."),
        (
            RuntimeError("CUDA error: out of memory"),
            "memory ran out: CUDA error: out of memory\na smaller token_budget",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), "memory ran out: CUDA error: CUBLAS"),
        (
            RuntimeError("[enforce fail at x.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            "memory ran out: [enforce fail",
        ),
    ],
)
def test_a_full_disk_and_a_failed_stage_say_how_to_go_on(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*_: Any) -> None:
        try:
            raise error
        except OSError as cause:
            if cause.errno in NO_ROOM:
                raise ValueError("a library") from cause
            raise

    monkeypatch.setattr(launch, "launch", fail)
    said = chain.tell("resume", "chain", "--from", "gfpo", code=1)
    assert words in said and said.endswith("to continue: gradus resume chain\n") and "traceback" not in said.lower()


def test_what_a_killed_process_left_is_removed_at_launch(chain: Chain) -> None:
    chain.stop_after(2, 1)
    path = chain.run().path
    checkpoints = path / "stages" / "03-gfpo" / "checkpoints"
    for ours in (".step-000002.0a1b2c3d", ".step-000001.9f8e7d6c/resume", f"{beside(Path('step-000002'), 'shards')}"):
        (checkpoints / ours).mkdir(parents=True)
    for name in (".run.json.0a1b2c3d", ".mlflow.json.0a1b2c3d"):
        (path / name).write_text("half")
    theirs = [".gitignore", ".run.json.swp", ".git/.index.0a1b2c3d", "stages/.DS_Store", "stages/03-gfpo/.notes/a"]
    theirs += ["stages/03-gfpo/checkpoints/.ipynb_checkpoints/a", "stages/03-gfpo/checkpoints/compared/table.csv"]
    for name in theirs:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("the user's own")
    said = chain.tell("verify", "chain")
    assert "left over: .step-000002.0a1b2c3d" in said and said.count("left over: ") == 4
    chain.tell("resume", "chain")
    kept = [file for file in path.rglob("*") if file.is_file() and file.read_bytes() == b"the user's own"]
    assert sorted(str(file.relative_to(path)) for file in kept) == sorted(theirs)
    assert not list(leftovers(path)) and (path / ".mlflow.json.0a1b2c3d").exists()


# --- processes and signals --------------------------------------------------------------------------------------------

SLOW = """\
import pathlib, time

def slow(completion, prompt):
    time.sleep(4 if pathlib.Path("be-slow").exists() else 0)
    return 0.0
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Launch chain as a process, until it has printed a line with these words."""
    chain, processes = Chain(tmp_path), []

    def start(words: str, *options: str) -> subprocess.Popen[str]:
        process = chain.process("run", "chain.yaml", "--engine", "none", *options)
        processes.append(process)
        assert process.stdout is not None
        assert any(words in line for line in process.stdout)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_killed_in_mid_stage_a_run_is_stopped_at_once_and_goes_on(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chain = Chain(tmp_path)
    process = started("dapo: step", "--set", "stages.dapo.steps=60")
    process.send_signal(signal.SIGSTOP)  # so that it stays where it is while we look
    assert re.search(r"chain +1/3 .* running: dapo step \d+/60", chain.tell("status"))
    assert re.search(r"chain is running \(process \d+", chain.tell("plan", "--name", "chain"))
    assert f"got:      process {process.pid} on" in chain.tell("resume", "chain", "--from", "sft", code=2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = checkpoints_in(chain.run().stage_dir(1))[0][0]
    assert f"stopped at dapo step {newest}/60" in chain.tell("status")
    assert (chain.run().path / "lock").read_text(), "what the dead process wrote is still there"
    said = chain.tell("resume", "chain")
    assert f"dapo: stage 2 of 3, 60 steps, continued after step {newest}" in said
    assert chain.run().state() == "done" and "done" in chain.tell("status")
    assert "Everything is as it was written" in chain.tell("verify", "chain")


@pytest.mark.parametrize(("one", "other"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_a_signal_finishes_the_step_a_second_one_ends_at_once(
    started: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one: signal.Signals,
    other: signal.Signals,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.py").write_text(SLOW)
    chain, slow = Chain(tmp_path), ["--set", "rewards=[{reward: exact_answer}, {reward: 'slow:slow'}]"]
    process = started("dapo: step", "--set", "stages.dapo.steps=200", *slow)
    (tmp_path / "be-slow").touch()
    time.sleep(0.5)
    process.send_signal(one)
    assert process.stdout is not None
    assert any("finishing this step" in line for line in process.stdout)
    process.send_signal(one)
    _, errors = process.communicate(timeout=12)  # a step takes sixteen
    assert process.returncode == 128 + one
    assert errors == "stopped: what was finished is kept; to continue: gradus resume chain\n"
    (tmp_path / "be-slow").unlink()
    process = chain.process("resume", "chain", "--engine", "none")
    assert process.stdout is not None and any("dapo: step" in line for line in process.stdout)
    process.send_signal(other)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + other and errors.startswith("stopped: what was finished is kept; ")
    assert re.search(r"stopped at dapo step \d+/200", chain.tell("status"))


@pytest.mark.parametrize("prepared", [True, False])
def test_mlflow_is_not_imported_beside_what_the_first_step_waits_for(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, prepared: bool
) -> None:
    chain.stop_after(1, 1)
    started = list[Path]()

    def start(path: Path) -> UploaderHandle:
        started.append(path)
        return UploaderHandle(path, None, "")

    def engine(_: Path, observer: Observer) -> dict[str, Any]:
        assert not started
        if prepared:
            observer.prepared(0.1, (0.0, 0.2))
            observer.prepared(0.1, (0.0, 0.2))
            assert started == [chain.run().path]
        raise StageFailed("enough")

    monkeypatch.setattr(client, "start_uploader", start)
    with pytest.raises(StageFailed, match="enough"):
        launch.launch(chain.run(), engine, Console(quiet=True))
    assert started == [chain.run().path], "what was journalled is delivered, however early a launch ends"


# --- status and verify ------------------------------------------------------------------------------------------------


def test_status_says_where_a_run_is(chain: Chain) -> None:
    assert re.search(r"chain +3/3 .* done\n", chain.tell("status"))
    chain.stop_after(1, 1)
    (status,) = json.loads(chain.tell("status", "--json"))
    assert (status["state"], status["stage"], status["step"], status["steps"]) == ("stopped", "dapo", 1, 2)
    assert status["folders"][1]["checkpoints"][0]["step"] == 1
    assert "stopped at dapo step 1/2" in chain.tell("status")
    shutil.rmtree(chain.run().stage_dir(1))
    assert "stopped before dapo" in chain.tell("status")
    shutil.rmtree(chain.run().path / "stages")
    (chain.run().path / "start.json").unlink()
    assert "stopped before the first stage" in chain.tell("status")
    (chain.runs / ".chain-fork.0a1b2c3d").mkdir()
    (chain.runs / ".chain-fork.0a1b2c3d" / "run.json").write_text("{}")
    assert len(json.loads(chain.tell("status", "--json"))) == 1, "a fork in the making is no run yet"


def test_status_of_a_failed_stage_is_not_cut(chain: Chain) -> None:
    chain.stop_after(1, 1)
    reason = "the moon was full " * 12 + "end"
    (chain.run().stage_dir(1) / "failure.json").write_text(json.dumps({"error": reason, "time": ""}))
    assert f"failed: {reason}\n" in chain.tell("status")
    said = chain.tell("status", "chain")
    assert reason in said and ["dapo", "2", "failed at step 1"] in table(said)


def test_verify_looks_at_everything_and_says_what_to_do(chain: Chain) -> None:
    chain.tell("resume", "chain", "--from", "gfpo")
    run = chain.run()
    found = json.loads(chain.tell("verify", "chain", "--json"))
    data = {"data: heldout", "data: train", "data: validation"}
    looked_at = {"records", *data, "start", "sft", "dapo", "gfpo", "gfpo, attempt 1"}
    looked_at |= {"dapo: prompts", "gfpo: prompts"}
    looked_at |= {f"{state}: answers" for state in ("start", "sft", "dapo", "gfpo")}
    assert found["ok"] and {each["what"] for each in found["findings"]} == looked_at
    flip(run.path / "start" / "tokenizer.json")
    flip(run.attempts(2)[0] / "checkpoints" / "step-000001" / "model.safetensors")
    (run.stage_dir(2) / "checkpoints" / "step-000002" / "config.json").unlink()
    (run.stage_dir(1) / "checkpoints" / "step-000001" / "gradus.json").write_text("{")
    flip(run.data_dir / "train.parquet")
    said = chain.tell("verify", "chain", code=1)
    for line in (
        r"data: train +\S+ kB  altered: train.parquet",
        r"start +0 +\S+ kB  altered: tokenizer.json",
        r"dapo +1 +\S+ kB  a damaged gradus.json",
        r"gfpo +2 +\S+ kB  missing: config.json",
        r"gfpo, attempt 1 +1 +\S+ kB  altered: model.safetensors",
        r"dapo +2 +\S+ kB  ok",
    ):
        assert re.search(line, said), (line, said)
    assert "5 of 21 damaged:\n" in said and "\n  gfpo step 2: `gradus resume chain` makes it again\n" in said
    assert "\n  gfpo, attempt 1 step 1: only a fork may still need it;" in said
    flip(run.stage_dir(1) / "checkpoints" / "step-000002" / "resume" / "state.safetensors")
    assert "what it hands over is undamaged" in chain.tell("verify", "chain", code=1)
    shutil.rmtree(run.stage_dir(0) / "checkpoints" / "step-000004")
    assert re.search(r"sft +4 +0 bytes  missing: step-000004\n", chain.tell("verify", "chain", code=1))
    assert "there is no run called 'x'" in chain.tell("verify", "x", code=2)
