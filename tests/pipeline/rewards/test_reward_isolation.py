"""What a reward does to its worker's surroundings: forks, descriptors, daemons, floods of output, secrets."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import gone

from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.config import RewardConfig
from gradus.pipeline.rewards import RewardSuite, check_rewards
from gradus.pipeline.rewards.workers.output import KEPT
from gradus.pipeline.types import Prompt

JUDGE = r"""
import ctypes, json, multiprocessing, os, signal, subprocess, sys, threading, time

def sockets():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.append(int(name))
        except OSError:
            pass
    return found

def everywhere(text):
    for descriptor in range(256):
        try:
            os.write(descriptor, text)
        except OSError:
            pass

def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 256)
            with open("daemon.new", "w") as file:
                file.write(str(os.getpid()))
            os.rename("daemon.new", "daemon")
            time.sleep(600)
        os._exit(0)
    while not os.path.exists("daemon"):
        time.sleep(0.01)

def score(prompt, completion):
    if completion == "fork":
        return 1.0 if os.fork() else 2.0
    if completion == "fork and raise":
        if os.fork() == 0:
            raise ValueError("in the child")
    if completion == "fork in C":
        return 1.0 if ctypes.CDLL(None).fork() else 2.0
    if completion == "child writes":
        if os.fork() == 0:
            everywhere(b"[0, 9.0]\n")
            os._exit(0)
        os.wait()
    if completion == "process":
        process = multiprocessing.get_context("fork").Process(target=everywhere, args=(b"[0, 9.0]\n",))
        process.start()
        process.join()
    if completion == "program":
        code = "import judge; open('inherited', 'w').write(str(judge.sockets()))"
        assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
    if completion == "garbage":
        everywhere(b"hello\n")
    if completion == "forged":
        everywhere(b'{"ready": true}\n')
    if completion == "text":
        everywhere(b'[0, "1.0"]\n')
    if completion == "bytes":
        everywhere(b"\xff\xfe\n")
    if completion == "nested":
        everywhere(b"[" * 10000 + b"\n")
    if completion == "endless":
        everywhere(b"x" * 100_000)
    if completion == "later":
        def write():
            while not os.path.exists("go"):
                time.sleep(0.01)
            everywhere(b"hello\n")
            os.rename("go", "went")
        threading.Thread(target=write, daemon=True).start()
    if completion == "close":
        for descriptor in sockets():
            os.close(descriptor)
    if completion == "daemon":
        daemon()
    if completion == "daemon, then die":
        daemon()
        os._exit(3)
    if completion == "terminated":
        for process in (os.getpid(), os.getppid()):
            for number in (signal.SIGTERM, signal.SIGHUP):
                os.kill(process, number)
        program = subprocess.Popen(["sleep", "60"])
        fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        fork.start()
        program.terminate()
        fork.terminate()
        fork.join()
        assert (program.wait(), fork.exitcode) == (-signal.SIGTERM, -signal.SIGTERM)
    if completion == "pid":
        return float(os.getpid())
    if completion == "flood":
        for _ in range(30):
            os.write(1, b"y" * 1_000_000)
    if completion == "environment":
        with open("environment", "w") as file:
            json.dump(dict(os.environ), file)
    if completion == "tell the key":
        raise ValueError(os.environ["JUDGE_API_KEY"] + "x" * 280 + os.environ["JUDGE_API_KEY"])
    if completion == "key":
        return float(os.environ["JUDGE_API_KEY"])
    return float(len(completion))
"""


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RewardSuite]]:
    """Makes a suite whose only reward is the function above, found in the current directory."""
    (tmp_path / "judge.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    suites: list[RewardSuite] = []

    def suite(env: tuple[str, ...] = ()) -> RewardSuite:
        config = RewardConfig(reward="judge:score", time_limit=20, env=[*env])
        suites.append(RewardSuite([config], 1, log=tmp_path / "log"))
        return suites[-1]

    yield suite
    for made in suites:
        made.close()


def score(suite: RewardSuite, *texts: str) -> tuple[list[float | str], dict[str, int], str]:
    """The scores, the kinds of failure and the first message."""
    scores = suite.score([Prompt("p", "?", "!")], [[*texts]])
    found: list[float | str] = ["nan" if math.isnan(score) else score for score in scores.components["score"][0]]
    return found, scores.kinds["score"], scores.examples.get("score", "")


def test_forks_and_children_of_a_reward_do_not_answer_for_it(judge: Callable[..., RewardSuite]) -> None:
    texts = ["fork", "a", "fork and raise", "child writes", "fork in C", "process", "program", "ab"]
    found, kinds, _ = score(judge(), *texts)
    assert found == [1, 1, len("fork and raise"), len("child writes"), 1, len("process"), len("program"), 2]
    assert kinds == {}
    assert Path("inherited").read_text() == "[]"


def test_a_broken_answer_is_a_failure_of_that_completion(judge: Callable[..., RewardSuite]) -> None:
    broken = ["garbage", "forged", "text", "bytes", "nested", "endless", "close"]
    found, kinds, message = score(judge(), *[text for item in broken for text in (item, f"{item} not")])
    assert found == [value for item in broken for value in ("nan", len(item) + 4)]
    assert kinds == {"crash": len(broken)}
    assert message == "the reward wrote where only its worker may; the worker was killed"


def test_nothing_is_blamed_for_what_is_written_while_nothing_is_scored(judge: Callable[..., RewardSuite]) -> None:
    suite = judge()
    assert score(suite, "later") == ([5], {}, "")
    Path("go").touch()
    until = time.monotonic() + 20
    while not Path("went").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert Path("went").exists()
    assert score(suite, "a") == ([1], {}, "")


@pytest.mark.parametrize("text", [b"hello\n", b'{"failed": 1}\n', b'{"failed": "judge", "message": null}\n'])
def test_a_module_that_writes_there_while_it_is_imported_is_told(
    judge: Callable[..., RewardSuite], text: bytes
) -> None:
    Path("judge.py").write_text(f"{JUDGE}\neverywhere({text!r})\n")
    with pytest.raises(StageFailed, match="the process for rewards can't start"):
        judge().wait_ready()


@pytest.mark.parametrize("text", ["daemon", "daemon, then die"])
def test_a_daemon_ends_with_its_worker(judge: Callable[..., RewardSuite], text: str) -> None:
    suite = judge()
    assert score(suite, text)[0] == ([len(text)] if text == "daemon" else ["nan"])
    suite.close()
    assert gone(int(Path("daemon").read_text()), 0.0)  # nothing to wait for: it ended before its worker did


def test_a_request_to_end_is_left_to_the_trainer(judge: Callable[..., RewardSuite]) -> None:
    """Slurm and systemd send SIGTERM to all processes of a job; the trainer then finishes its step, with scores."""
    suite = judge()
    ((before,), *_), found = score(suite, "pid"), score(suite, "terminated")
    assert found == ([len("terminated")], {}, "")
    assert score(suite, "pid")[0] == [before]


def test_the_log_keeps_the_beginning_and_says_what_was_dropped(judge: Callable[..., RewardSuite]) -> None:
    suite = judge()
    assert score(suite, "flood", "a", "flood", "")[0] == [5, 1, 5, 0]
    suite.close()
    text = Path("log").read_text()
    assert text.startswith("y" * KEPT + "\n")
    assert len(text) < KEPT + 200
    assert text.endswith(f"[gradus dropped {30_000_000 - KEPT} bytes of what rewards printed]\n")


SECRETS = {
    "MLFLOW_TRACKING_PASSWORD": "a",
    "PREFECT_API_AUTH_STRING": "a",
    "AWS_PROFILE": "a",
    "HF_TOKEN": "a",
    "PGPASSWORD": "a",
    "MYSQL_PWD": "a",
    "SSH_AUTH_SOCK": "a",
    "JUDGE_API_KEY": "7",
    "GITHUB_PAT": "a",
    "DATABASE_URL": "postgres://me:word@host/db",
    "SERVICE_URL": "https://host/?token=word",
}


def test_secrets_are_withheld_unless_they_are_declared(
    judge: Callable[..., RewardSuite], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "PWD": "/",
        "HTTP_PROXY": "http://me:word@proxy:1",
    }
    for name, value in {**SECRETS, **plain}.items():
        monkeypatch.setenv(name, value)
    _, kinds, message = score(judge(), "environment", "key")
    given = json.loads(Path("environment").read_text())
    assert not given.keys() & SECRETS.keys()
    assert given.items() >= plain.items()
    assert given["PATH"] == os.environ["PATH"]
    assert kinds == {"error": 1}
    assert message == (
        "KeyError: 'JUDGE_API_KEY' (JUDGE_API_KEY is set, but withheld from rewards: name it in the reward's `env`)"
    )
    assert score(judge(env=("JUDGE_API_KEY",)), "key")[0] == [7]


def test_a_secret_that_a_reward_tells_is_not_reported(
    judge: Callable[..., RewardSuite], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "sk-1234")
    assert score(judge(env=("JUDGE_API_KEY",)), "tell the key")[2] == "ValueError: ..." + "x" * 280 + "..."


@pytest.mark.parametrize(
    ("reward", "name", "message"),
    [
        ("judge:score", "JUDGE_API_KEY", "needs JUDGE_API_KEY, which is not in the environment"),
        ("judge:score", "JUDGE_API_KEY=sk-1234", "not the name of an environment variable"),
        ("exact_answer", "HOME", "of the library needs no variables"),
    ],
)
def test_a_declared_variable_that_a_reward_cannot_get_is_told_before_anything_starts(
    reward: str, name: str, message: str, judge: Callable[..., RewardSuite], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    with pytest.raises(UserError, match=message) as told:
        check_rewards([RewardConfig(reward=reward, env=[name])])
    assert told.value.where == "rewards.0.env"
    assert "sk-1234" not in str(told.value)
