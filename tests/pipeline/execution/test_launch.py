"""Several processes train what one process trains: the same weights within float32's rounding."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from faults import largest_file
from killed_runs import KILL, TERM, run_lives
from paths import HELPERS, search_path
from pydantic import ValidationError
from safetensors.torch import load_file
from small_pipeline import STAGE_CONFIGS, Notes, launch, pipeline, write_task

from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.host import without_launchers
from gradus.pipeline.common.interruption import Interrupted, handled
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.ranks import ALONE
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.options import identity
from gradus.pipeline.execution.launch import _Launch
from gradus.pipeline.execution.prepare import prepare
from gradus.pipeline.runs.checkpoint import checkpoints_in, read_record
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.same_outcome import CLOCKS
from gradus.pipeline.tracking.journal import metric_history
from gradus.pipeline.training.learner.shards import read_shards, write_shards

STAGES = [
    {"stage": "sft", "score": "mean", "token_budget": 40},
    {"stage": "dapo", "group_size": 3, "variant": "paper", "refills": 1, "prompts_per_step": 5},
    {"stage": "vapo", "group_size": 3, "name": "vapo"},
    {"stage": "vapo", "group_size": 3, "variant": "paper", "critic_warmup": 1, "critic_lr": 1e-3, "name": "vapo-paper"},
    {
        "stage": "gfpo",
        "group_size": 3,
        "ranking": ["reward", "shorter"],
        "updates_per_batch": 2,
        "token_budget": 30,
        "prompts": {"profile": 2, "pass_rate": [0, 0.9]},
    },
    {
        "stage": "srpo",
        "group_size": 2,
        "refresh": 2,
        "advantage": "combined",
        "baseline": "mean",
        "gradient_checkpointing": True,
    },
    {"stage": "srpo", "name": "reweighted", "group_size": 3, "refresh": 1},
    {"stage": "sft", "prompts_per_step": 1, "handover": "best", "eval_every": 1, "carry": ["optimizer"]},
]


CAPPED = {"model_type": "gemma2", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "head_dim": 8,
          "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
"""A model that is trained on padded batches, its head tied to its embedding."""


def config(
    stages: list[dict], processes: int = 1, shard: str = "none", lora: bool = False, **options: object
) -> PipelineConfig:
    """A reward that a new policy earns in part, so that every stage has something to learn."""
    graded = {"reward": "length", "params": {"max": 5, "falloff": 15}}
    options |= {"rewards": [graded, {"reward": "equation_steps"}], "evaluation": {"threshold": 0.5}}
    if lora:
        options["policy"] = {"architecture": CAPPED, "device": "cpu", "lora": {"rank": 4, "alpha": 8}}
    return pipeline(stages, launch={"processes": processes, "shard": shard, "time_limit": 100}, **options)


def weights(run: RunFolder, index: int) -> dict[str, torch.Tensor]:
    result = run.result(index)
    assert result is not None
    return load_file(Path(result["checkpoint"]) / "model.safetensors")


def assert_alike(one: RunFolder, two: RunFolder, index: int) -> None:
    """Weights within rounding: AdamW divides by a gradient's size, so a small one's rounding counts relative to lr."""
    label, rate = one.config.stages[index].label, one.config.stages[index].lr
    expected, found = weights(one, index), weights(two, index)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        told = f"{label}: {name}"
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-3 * rate, msg=lambda m, told=told: f"{told} {m}"
        )


def curves(run: RunFolder, index: int) -> dict[str, dict[int, float]]:
    history = metric_history(run.stage_dir(index) / "journal.jsonl")
    return {name: values for name, values in history.items() if not name.startswith(CLOCKS)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Every stage by one process, by two, and by two with FSDP."""
    folder = tmp_path_factory.mktemp("ranks")
    write_task(folder)
    found = {"alone": launch(folder, config(STAGES), "alone")}
    found["adapters-alone"] = launch(folder, config(STAGES[:2], lora=True), "adapters-alone")
    ranked = {
        "replicated": config(STAGES, 2),
        "sharded": config(STAGES, 2, "fsdp"),
        "adapters-sharded": config(STAGES[:2], 2, "fsdp", lora=True),
    }
    for name, wanted in ranked.items():
        found[name] = RunFolder.create(folder / "runs", wanted, name, folder / "c", STAGE_CONFIGS)
        prepare(found[name], Observer())
    path = search_path(HELPERS)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=localhost"]
    command += ["--nproc-per-node=2", str(HELPERS / "two_ranks.py"), str(folder), *ranked]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return found


@pytest.mark.parametrize("index", range(len(STAGES)), ids=lambda index: f"{index}-{STAGES[index]['stage']}")
@pytest.mark.parametrize("way", ["replicated", "sharded"])
def test_two_processes_train_what_one_does(runs: dict[str, RunFolder], way: str, index: int) -> None:
    one, two = runs["alone"], runs[way]
    assert_alike(one, two, index)
    expected, found = curves(one, index), curves(two, index)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-3, abs=1e-5), name
    assert (two.heldout(index), two.result(index)["rollouts"]) == (one.heldout(index), one.result(index)["rollouts"])
    trained = max(expected["update/gradient_norm"].values())
    assert trained > 1e-3, "or equality would prove nothing"


@pytest.mark.parametrize("index", [0, 1])
def test_adapters_of_a_padded_model_too(runs: dict[str, RunFolder], index: int) -> None:
    assert_alike(runs["adapters-alone"], runs["adapters-sharded"], index)


def test_moments_are_written_in_shards_by_those_who_hold_them(runs: dict[str, RunFolder]) -> None:
    names = ("alone", "replicated", "sharded")
    files = {name: set(read_record(Path(runs[name].result(1)["checkpoint"])).files) for name in names}
    parts = {f"resume/shards/shard-0000{part}-model-00001-of-00001.safetensors" for part in (1, 2)}
    assert files["replicated"] == files["alone"]
    assert files["sharded"] == files["alone"] | parts


LONG = [{"stage": "dapo", "group_size": 3, "steps": 30}]
OFTEN = {"every_steps": 4}


def processes_of(run: RunFolder) -> list[psutil.Process]:
    """torchrun and the ranks that work on a run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if "gradus.pipeline.execution.rank_process" in arguments and any(
            str(run.path) in argument for argument in arguments
        ):
            found.append(process)
    return found


class Killer(Observer):
    """Kills a rank once a step is done."""

    def __init__(self, folder: Path, rank: int, step: int):
        self.folder, self.rank, self.step = folder, rank, step

    def step_done(self, label: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        if step == self.step:
            processes = processes_of(RunFolder(self.folder / "runs" / "run", STAGE_CONFIGS))
            (chosen,) = [process for process in processes if process.environ().get("RANK") == str(self.rank)]
            chosen.kill()


def live(folder: Path, processes: int, shard: str, life: str) -> RunFolder:
    """A life of the run, see killed_runs.py, in so many processes."""
    described = config(LONG, processes, shard, checkpoints=OFTEN).model_dump(mode="json")
    (folder / "config.yaml").write_text(yaml_text.dump(described))
    return run_lives(folder, "run", life)


def steps_kept(run: RunFolder) -> int:
    return checkpoints_in(run.stage_dir(0))[0][0]


ANOTHER_LAUNCH = {
    "PET_NNODES": "2",  # torchrun would wait for a second host
    "PET_RDZV_ENDPOINT": "elsewhere:29400",
    "TORCHELASTIC_RUN_ID": "another",
    "TORCHELASTIC_ERROR_FILE": "/nowhere/error.json",
    "SLURM_NTASKS": "16",
    "OMPI_COMM_WORLD_RANK": "3",
    "WORLD_SIZE": "16",
    "RANK": "3",
    "LOCAL_RANK": "3",
    "MASTER_ADDR": "elsewhere",
    "MASTER_PORT": "1",
    "GLOO_SOCKET_IFNAME": "ib0",
    "ACCELERATE_USE_FSDP": "true",  # transformers would load no weights in any process but the first
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "NCCL_DEBUG": "INFO",
}
"""What schedulers and other launches leave in the environment."""


def test_what_describes_another_launch_is_not_passed_on() -> None:
    assert without_launchers({**ANOTHER_LAUNCH, "PATH": "/bin"}) == {"PATH": "/bin", "NCCL_DEBUG": "INFO"}


class Unborn(_Launch):
    """A launch whose processes never say anything."""

    def _start(self, spec: dict[str, Any], folder: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "100"])


def test_processes_that_do_not_start_are_waited_for_in_words_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradus.pipeline.execution.launch.START_NOTE_SECONDS", 0.1)
    notes: list[str] = []
    failed = r"2 of 2 processes did not start within 0.5 s \(launch.time_limit\); .*log has what they wrote"
    with Unborn(2, {}, tmp_path / "log", Notes(notes)) as launched, pytest.raises(StageFailed, match=failed):
        launched.until_started(0.5)
    assert notes == [f"waiting for 2 of 2 processes to start; {tmp_path}/log has what they write"]
    said: list[str] = []
    unborn = Unborn(2, {}, tmp_path / "log", Observer())
    with pytest.raises(Interrupted), handled(said.append), unborn as launched:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        launched.until_started(100)
    assert not said, "no step is being finished"


def test_a_long_path_of_temporary_files_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 120)  # more than the address of a local socket takes
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with Unborn(1, {}, tmp_path / "log", Observer()) as launched, pytest.raises(StageFailed):
        launched.until_started(0)


def test_a_run_goes_on_in_other_numbers_of_processes_whatever_ended_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ANOTHER_LAUNCH.items():
        monkeypatch.setenv(name, value)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    write_task(tmp_path)
    undisturbed = launch(tmp_path, config(LONG), "undisturbed")

    run = live(tmp_path, 1, "none", f"dapo:2:0.5:{TERM}")
    alone = steps_kept(run)
    assert 3 <= alone < 8

    live(tmp_path, 2, "none", f"dapo:{alone + 2}:0.5:{TERM}")  # one process -> two, asked to end
    asked = steps_kept(run)
    assert not [*temporary.glob("torchelastic_*"), *temporary.glob("gradus-*")], "no temporary file is left"
    assert alone + 3 <= asked < 24 and run.failure(0) is None, "the step in hand was finished and kept"

    live(tmp_path, 2, "none", f"dapo:{asked + 2}:0.5:{KILL}")  # the launch itself is killed
    deadline = time.monotonic() + 10
    while left := processes_of(run):
        assert time.monotonic() < deadline, f"{left} outlived their launch"
        time.sleep(0.1)

    begun = steps_kept(run)
    with pytest.raises(StageFailed, match=r"rank 1 of 2 was ended by SIGKILL.*torchrun\.log"):
        launch(
            tmp_path, config(LONG, 2, "fsdp", checkpoints={"every_steps": 1}), observer=Killer(tmp_path, 1, begun + 3)
        )
    killed = steps_kept(run)
    failure = run.failure(0)
    assert failure is not None and "rank 1 of 2" in failure["error"]
    assert killed >= begun + 2 and not processes_of(run)
    assert any("shards" in name for name in read_record(checkpoints_in(run.stage_dir(0))[0][1]).files)

    launch(tmp_path, config(LONG))  # two with shards -> one
    assert_alike(undisturbed, run, 0)
    expected, found = curves(undisturbed, 0), curves(run, 0)
    assert found["reward/mean"] == pytest.approx(expected["reward/mean"], rel=1e-5)
    assert found["progress/tokens"] == expected["progress/tokens"]


def test_what_a_rule_does_in_the_ranks_is_told_here(tmp_path: Path) -> None:
    acted, observer = list[tuple[str, object]](), Observer()
    observer.rule_acted = lambda label, event: acted.append((label, event))
    stage = {"stage": "dapo", "group_size": 2, "steps": 3, "until": {"rollouts": 1}}
    result = launch(tmp_path, config([stage], 2), observer=observer).result(0) or {}
    assert acted == [("dapo", result["events"][0])] and result["steps"] == 1
    assert result["answers"], "rank 0 keeps those of both"


def test_an_error_of_the_ranks_is_the_launchs_own(tmp_path: Path) -> None:
    described = config(LONG, 2).model_dump(mode="json")
    described["policy"]["lora"] = {"targets": ["no_such_layer"]}
    with pytest.raises(UserError, match="the adapters fit nowhere in the model") as raised:
        launch(tmp_path, type(config(LONG)).model_validate(described))
    assert raised.value.where == "policy.lora.targets"


def test_a_full_disk_under_a_shard_ends_the_stage_in_words(tmp_path: Path) -> None:
    tensors, folder = {"moment": torch.arange(60_000.0).view(300, 200)}, tmp_path / "shards"
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with largest_file(10_000), pytest.raises(StageFailed, match=r"rank 0: .*Earlier checkpoints are whole"):
            write_shards(folder, tensors, ALONE)
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert write_shards(folder, tensors, ALONE), "once there is room"
    found = {"moment": torch.zeros(300, 200)}
    read_shards(folder, found)
    assert torch.equal(found["moment"], tensors["moment"])


def test_sampling_ahead_in_several_processes_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"'dapo' samples ahead .*set `launch.processes` to 1"):
        config([{"stage": "dapo", "async": 1}], 2)
    assert config([{"stage": "dapo", "async": 1}], 1).stages[0].async_


def test_how_many_processes_train_is_no_part_of_what_a_run_is() -> None:
    assert identity(config(STAGES, 2, "fsdp")) == identity(config(STAGES))
