"""What a reward leaves behind in its worker, which the next completion must not meet."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from gradus.pipeline.config import RewardConfig
from gradus.pipeline.rewards import RewardSuite, Scores
from gradus.pipeline.types import Prompt

CARELESS = r"""
import faulthandler, os, shutil, signal, sys, tempfile, time

def score(prompt, completion, *, words):
    began = time.process_time()
    if completion == "odd text":
        raise ValueError("\ud800\x1b[2J")
    if completion == "alarm":
        signal.signal(signal.SIGALRM, lambda *_: sys.exit("late"))
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    if completion == "alarm of the processor":
        signal.signal(signal.SIGPROF, lambda *_: sys.exit("busy"))
        signal.setitimer(signal.ITIMER_PROF, 0.1)
    if completion == "watchdog":
        faulthandler.dump_traceback_later(0.1, exit=True)
    if completion == "folder":
        os.chdir(tempfile.mkdtemp(dir="."))
        shutil.rmtree(os.getcwd())
    if completion.startswith("slow"):
        time.sleep(0.3)
    if completion == "busy":
        while time.process_time() < began + 0.3:
            pass
    if completion == "last words":
        print("I was here")
        os.kill(os.getpid(), signal.SIGKILL)
    if completion == "memory":
        with open("/proc/self/oom_score_adj") as file:
            return float(file.read())
    words.append(completion)
    prompt.metadata["list"].append(completion)
    return len(words) + len(prompt.metadata["list"]) + (completion != "folder" and not os.path.exists("careless.py"))
"""


@pytest.fixture
def careless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scores]:
    """Scores completions of one prompt by the function above, one after another in one worker."""
    (tmp_path / "careless.py").write_text(CARELESS)
    monkeypatch.chdir(tmp_path)

    def scores(*texts: str) -> Scores:
        with RewardSuite(
            [RewardConfig(reward="careless:score", time_limit=20, params={"words": []})], 1, "log"
        ) as suite:
            return suite.score([Prompt("p", "?", "!", {"list": [0]})], [[*texts]])

    return scores


def test_each_completion_starts_from_what_was_sent(careless: Callable[..., Scores]) -> None:
    texts = ["a", "b", "alarm", "slow", "folder", "alarm of the processor", "busy", "watchdog", "slow as before", "d"]
    scores = careless(*texts)
    assert scores.components["score"] == [[3.0] * len(texts)], scores.examples


def test_the_worker_and_not_the_trainer_is_killed_where_memory_runs_out(careless: Callable[..., Scores]) -> None:
    assert careless("memory").components["score"] == [[1000]]


def test_what_a_reward_says_can_be_printed(careless: Callable[..., Scores]) -> None:
    scores = careless("odd text")
    assert math.isnan(scores.components["score"][0][0])
    assert scores.examples == {"score": r"ValueError: \ud800\x1b[2J"}


def test_what_a_reward_prints_is_kept_when_its_worker_is_killed(
    careless: Callable[..., Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    assert careless("last words").kinds == {"score": {"crash": 1}}
    assert Path("log").read_text() == "I was here\n"
