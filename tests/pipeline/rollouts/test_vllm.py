"""vLLM itself as the engine: the policy's numbers to five digits, every stage, and what happens when it goes away.

Skipped where vLLM is not installed: `make vllm` sets it up for a CPU in an environment of its own.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gsm8k_rows import loaded
from paths import HELPERS
from safetensors.torch import load_file, save_file
from small_pipeline import launch, pipeline
from tiny_policies import tiny_policy
from vllm_models import SIZES, architectures
from vllm_servers import Server, environment, missing, serving, vllm_python

from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.files import sha256
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.compute import LaunchConfig, RolloutConfig
from gradus.pipeline.policy.loading import load_policy
from gradus.pipeline.rollouts import factory
from gradus.pipeline.rollouts.builtin import DrawKey
from gradus.pipeline.rollouts.external import EngineSampler
from gradus.pipeline.rollouts.vllm.checks import check_rollouts
from gradus.pipeline.rollouts.vllm.http import Client, ServerProblem
from gradus.pipeline.rollouts.vllm.server import VllmServer
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import metric_history
from gradus.pipeline.types import Prompt

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing() or "it is"), pytest.mark.timeout(600)]

STAGES = [
    {"stage": "sft", "steps": 3},
    {"stage": "dapo", "group_size": 3},
    {"stage": "vapo", "group_size": 2},
    {"stage": "gfpo", "group_size": 2, "minibatches": 2, "clip": [0.2, 0.28], "async": 1},
    {"stage": "srpo", "group_size": 2, "refresh": 1, "baseline": "mean"},
]
REWARDS = [{"reward": "length", "params": {"max": 5, "falloff": 15}}, {"reward": "equation_steps"}]
POLICY = {"architecture": {"model_type": "llama", "num_key_value_heads": 2, **SIZES}, "device": "cpu"}


def config(url: str = "", stages: list[dict] = STAGES, **rollouts: Any) -> PipelineConfig:
    chosen = {"engine": "vllm-server", "url": url, "time_limit": 5, **rollouts} if url else {}
    return pipeline(stages, policy=POLICY, rewards=REWARDS, evaluation={"threshold": 0.5}, rollouts=chosen)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run by the built-in sampler; its start is what the server is started from."""
    return launch(tmp_path_factory.mktemp("plain"), config())


@pytest.fixture(scope="module")
def server(plain: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(plain.path / "start", tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(autouse=True)
def no_engine_of_another_test() -> None:
    factory._ENGINES.clear()


def sampler_of(server: Server, folder: Path, **options: Any) -> EngineSampler:
    rollouts = RolloutConfig(engine="vllm-server", url=server.url, **{"time_limit": 5.0, **options})
    return EngineSampler(VllmServer(rollouts, folder), rollouts, token_budget=500, autocast=False)


def test_every_stage_on_a_server(server: Server, plain: RunFolder, tmp_path: Path) -> None:
    wanted = config(server.url)
    check_rollouts(wanted)
    run = launch(tmp_path, wanted)
    for index, stage in enumerate(STAGES):
        result, same = run.result(index), plain.result(index)
        assert result is not None and same is not None and result["rollouts"] == same["rollouts"]
        if stage["stage"] == "sft":  # no draw is in it: the server's greedy answers are the built-in sampler's
            assert result["accuracy_after"] == same["accuracy_after"]
            continue
        curves = metric_history(run.stage_dir(index) / "journal.jsonl")
        assert all(0 < value < 1e-5 for value in curves["sampler/mismatch"].values())
        assert all(abs(value - 1) < 1e-4 for value in curves["update/importance"].values())
    assert not [*(run.path / "rollout-weights").iterdir()]


def test_it_can_be_repeated(server: Server, plain: RunFolder, prompts: list, tmp_path: Path) -> None:
    policy = load_policy(plain.path / "start", plain.config.policy)
    sampler, found = sampler_of(server, tmp_path), []
    for _ in range(2):
        with sampler.weights_of(policy):
            found.append(sampler(policy, prompts, 4, plain.config.sampling, DrawKey(0, "s", 1)).texts)
    assert found[0] == found[1] and len({text for group in found[0] for text in group}) > 8


def test_a_server_that_dies_ends_the_stage_which_goes_on_when_it_is_back(
    server: Server, plain: RunFolder, tmp_path: Path
) -> None:
    own = Server(plain.path / "start", tmp_path / "own.log")
    own.start()
    stages = [{"stage": "dapo", "group_size": 3, "steps": 60}]
    wanted = config(own.url, stages, time_limit=10)  # a slow machine's first completion takes more than two seconds
    wanted = wanted.model_copy(update={"checkpoints": wanted.checkpoints.model_copy(update={"every_steps": 1})})
    folder = tmp_path / "runs" / "run" / "stages" / "01-dapo"

    ended = threading.Event()

    def kill_it() -> None:
        while not ended.is_set() and not [*folder.glob("checkpoints/step-00000[3-9]")]:
            time.sleep(0.02)
        own.kill()

    killer = threading.Thread(target=kill_it)
    killer.start()
    try:
        with pytest.raises(StageFailed, match=f"{own.url} cannot go on: .*resume the run"):
            launch(tmp_path, wanted)
        ended.set()
        killer.join()
        assert [*folder.glob("checkpoints/step-00000[3-9]")], "it ended before it was killed"
        own.start()
        factory._ENGINES.clear()
        run = launch(tmp_path, wanted)
        result = run.result(0)
        assert result is not None and result["steps"] == 60
    finally:
        own.kill()


def test_another_ones_weights_are_noticed(server: Server, plain: RunFolder, prompts: list, tmp_path: Path) -> None:
    policy = load_policy(plain.path / "start", plain.config.policy)
    other = load_policy(plain.result(0)["checkpoint"], plain.config.policy)  # type: ignore[index]
    mine, theirs = sampler_of(server, tmp_path / "a"), sampler_of(server, tmp_path / "b")
    with pytest.raises(StageFailed, match="something else pushes weights"), mine.weights_of(policy):
        mine(policy, prompts, 2, plain.config.sampling, DrawKey(0, "s", 1))
        with theirs.weights_of(other):
            theirs(other, prompts, 2, plain.config.sampling, DrawKey(0, "s", 1))
    with mine.weights_of(policy):
        assert mine.engine.digest()  # and it can go on


def test_a_damaged_file_changes_nothing(server: Server, plain: RunFolder, tmp_path: Path) -> None:
    client, before = Client(server.url, 5.0), Client(server.url, 5.0).state()["digest"]
    path = tmp_path / "w.safetensors"
    save_file(load_file(plain.path / "start" / "model.safetensors"), path)
    found = sha256(path)
    path.write_bytes(path.read_bytes()[:-4] + b"0000")
    with pytest.raises(ServerProblem, match="not the file that was written"):
        client.workers("read_rollout_weights", "x", str(path), found)
    assert client.state()["digest"] == before


def test_weights_of_another_model_are_refused(server: Server, plain: RunFolder, prompts: list, tmp_path: Path) -> None:
    sampler = sampler_of(server, tmp_path)
    with pytest.raises(UserError, match="another model than the policy"), sampler.weights_of(tiny_policy()):
        pass
    policy = load_policy(plain.path / "start", plain.config.policy)
    with sampler.weights_of(policy):  # the right ones are taken after that
        sampler(policy, prompts, 2, plain.config.sampling, DrawKey(0, "s", 1))


def test_a_prompt_that_does_not_fit_is_told(server: Server, plain: RunFolder, tmp_path: Path) -> None:
    policy = load_policy(plain.path / "start", plain.config.policy)
    sampler = sampler_of(server, tmp_path)
    prompt = Prompt(id="long", question="1 + 2 " * 2000, answer="")
    with pytest.raises(StageFailed, match="context length"), sampler.weights_of(policy):
        sampler(policy, [prompt], 2, plain.config.sampling, DrawKey(0, "s", 1))


def test_two_processes_share_a_server(server: Server, tmp_path: Path) -> None:
    """One of them pushes, each asks for its share of the prompts."""
    wanted = config(server.url, [{"stage": "dapo", "group_size": 3}])
    run = launch(tmp_path, wanted.model_copy(update={"launch": LaunchConfig(processes=2, time_limit=100)}))
    curves = metric_history(run.stage_dir(0) / "journal.jsonl")
    assert [*curves["sampler/pushes"].values()] == [0.0, 1.0]  # the start's weights were there from the evaluation
    assert all(0 < value < 1e-5 for value in curves["sampler/mismatch"].values())


def test_gsm8k_qwen(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    overridden = ["rollouts.url=http://127.0.0.1:9", f"rollouts.weights_folder={folder}"]
    config = loaded(tmp_path, *overridden, **architectures()["qwen-tied"]).config
    with serving(tmp_path / "model", tmp_path) as own:
        config = config.model_copy(update={"rollouts": config.rollouts.model_copy(update={"url": own.url})})
        run = launch(tmp_path, config)
    assert [run.result(index)["steps"] for index in range(4)] == [1, 1, 1, 1]  # type: ignore[index]
    assert folder.is_dir() and not [*folder.iterdir()]


@pytest.mark.parametrize("kind", architectures())
def test_in_the_training_process(kind: str, tmp_path: Path) -> None:
    """Grouped, tied and sliding-window attention, and adapters; before and after an update."""
    command = [str(vllm_python()), str(HELPERS / "vllm_local.py"), str(tmp_path), kind]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    told = json.loads(line.removeprefix("RESULT "))
    assert told["threads"] == 1 and told["random"]
    for when in ("start", "trained"):
        assert told[when]["mismatch"] < 1e-5
        assert told[when]["repeats"] and told[when]["greedy"] and told[when]["ends"] and told[when]["different"] > 8
