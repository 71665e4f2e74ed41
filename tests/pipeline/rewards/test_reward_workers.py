"""The suite, and isolated rewards in real processes: hangs, crashes, noise, orphans, and the two libraries there."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import search_path
from processes import gone

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import RewardConfig
from gradus.pipeline.rewards import RewardSuite, Scoring
from gradus.pipeline.tasks.metadata import decode, encode
from gradus.pipeline.tasks.reasoning_gym import gym_dataset
from gradus.pipeline.types import Prompt

JUDGE = """
import math, os, signal, subprocess, sys, time

def score(prompt, completion, *, bonus=0.0):
    if completion == "spin":
        while True:
            pass
    if completion == "lock":
        9 ** (9 ** 9)
    if completion == "brood":
        child = subprocess.Popen(["sleep", "60"])
        with open("child", "w") as file:
            file.write(f"{os.getpid()} {child.pid}")
        os.rename("child", "pids")
        time.sleep(60)
    if completion == "die":
        os._exit(3)
    if completion == "fault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if completion == "raise":
        raise ValueError("no such unit")
    if completion == "leave":
        sys.exit(0)
    if completion == "noise":
        print("[0, 1.0]", flush=True)
        os.write(1, b'{"ready": true}\\n[0, 9.0]\\n')
        subprocess.run(["echo", "loud"])
        assert sys.stdin.read() == ""
    if completion == "text":
        return "1.0"
    if completion == "nan":
        return math.nan
    if completion == "pid":
        time.sleep(0.05)
        return os.getpid()
    if completion == "wait":
        open("waiting", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
        open("went", "w").close()
    if completion == "touch":
        open("touched", "w").close()
    if completion == "torch":
        return "torch" in sys.modules
    return len(completion) + bonus + len(prompt.metadata.get("pair", ()))
"""


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RewardSuite]]:
    """Makes a suite whose only reward is the function above, found in the current directory."""
    (tmp_path / "judge.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    suites: list[RewardSuite] = []

    def suite(workers: int = 1, time_limit: float = 1.0, **params: Any) -> RewardSuite:
        config = RewardConfig(reward="judge:score", time_limit=time_limit, params=params)
        suites.append(RewardSuite([config], workers, log=tmp_path / "log"))
        return suites[-1]

    yield suite
    for made in suites:
        made.close()


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", "?", "!", {"pair": (1, 2)}) for i in range(count)]


def test_suite_scores_in_the_shape_it_was_asked() -> None:
    suite = RewardSuite([RewardConfig(reward="exact_answer"), RewardConfig(reward="numeric_answer", name="near")])
    asked = [Prompt("a", "?", "372"), Prompt("b", "?", "red")]
    with suite:
        scores = suite.score(asked, [["answer: 372", "answer: 372.0", "answer: 372"], ["answer: red", "", "x"]])
    assert scores.components["exact_answer"] == [[1, 0, 1], [1, 0, 0]]
    assert scores.components["near"][0] == [1, 1, 1]
    # "red" is no number: the reward can't judge, which is not the completions' fault and no zero
    assert all(math.isnan(score) for score in scores.components["near"][1])
    assert scores.errors == {"exact_answer": 0, "near": 3}
    assert scores.kinds == {"exact_answer": {}, "near": {"error": 3}}
    assert "not one number" in scores.examples["near"]


def test_a_batch_goes_on_past_everything(judge: Callable[..., RewardSuite], tmp_path: Path) -> None:
    texts = [["ab", "spin", "abc", "die"], ["a", "fault", "noise", "raise"], ["", "leave", "text", "nan"]]
    suite = judge(bonus=0.5)
    scores = suite.score(prompts(3), texts)
    nan = "nan"
    found = [[nan if math.isnan(score) else score for score in group] for group in scores.components["score"]]
    # length + 0.5 + a pair
    assert found == [[4.5, nan, 5.5, nan], [3.5, nan, 7.5, nan], [2.5, nan, nan, nan]]
    assert scores.kinds == {"score": {"timeout": 1, "crash": 2, "error": 4}}
    assert scores.errors == {"score": 7}
    assert scores.examples["score"] == "no score within 1 s; the worker was killed"
    assert "loud" in (tmp_path / "log").read_text()
    again = suite.score(prompts(1), [["raise", "ab", "die"]])
    assert again.examples["score"] == "ValueError: no such unit"
    assert again.components["score"][0][1] == 4.5


def test_a_hang_inside_the_interpreter_is_killed_with_all_it_started(judge: Callable[..., RewardSuite]) -> None:
    suite = judge(workers=2)
    scores = suite.score(prompts(2), [["lock", "ab"], ["brood", "abc"]])
    assert scores.kinds["score"] == {"timeout": 2}
    assert [group[1] for group in scores.components["score"]] == [4, 5]
    worker, child = map(int, Path("pids").read_text().split())
    assert gone(worker)
    assert gone(child)


def test_workers_share_a_batch_and_hold_no_torch(judge: Callable[..., RewardSuite]) -> None:
    suite = judge(workers=2, time_limit=5)
    suite.wait_ready()
    scores = suite.score(prompts(8), [["pid", "torch", "pid"]] * 8).components["score"]
    assert len({group[0] for group in scores}) == 2
    assert {group[1] for group in scores} == {0.0}
    # the same text twice for a prompt is scored once
    assert all(group[0] == group[2] for group in scores)


def test_workers_end_with_their_suite_and_survive_an_idle_death(judge: Callable[..., RewardSuite]) -> None:
    with judge() as suite:
        first = int(suite.score(prompts(1), [["pid"]]).components["score"][0][0])
        guardian = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, guardian, os.WEXITED | os.WNOWAIT)  # the pool can see it
        scores = suite.score(prompts(1), [["pid"]])  # no completion is to blame, so none fails
        second = int(scores.components["score"][0][0])
        assert scores.errors == {"score": 0}
        assert second != first
    assert gone(second)


def test_workers_die_with_a_parent_that_is_killed(judge: Callable[..., RewardSuite], tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text(
        textwrap.dedent(
            """
            from gradus.pipeline.config import RewardConfig
            from gradus.pipeline.rewards import RewardSuite, Scoring
            from gradus.pipeline.types import Prompt
            suite = RewardSuite([RewardConfig(reward="judge:score", time_limit=60)])
            suite.score([Prompt("p", "?", "!")], [["brood"]])
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": search_path()}
    trainer = subprocess.Popen([sys.executable, "trainer.py"], env=environment)
    try:
        until = time.monotonic() + 20
        while not Path("pids").exists() and time.monotonic() < until:
            time.sleep(0.02)
        worker, child = map(int, Path("pids").read_text().split())
    finally:
        trainer.kill()
        trainer.wait()
    assert gone(worker)
    assert gone(child)


def test_a_module_that_fails_to_import_is_told(judge: Callable[..., RewardSuite], tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("import numpi\ndef score(prompt, completion): ...\n")
    with pytest.raises(UserError, match="ModuleNotFoundError: No module named 'numpi'"):
        judge().wait_ready()


def test_an_exponential_pattern_is_killed() -> None:
    config = RewardConfig(reward="format", params={"pattern": "(a|aa)+b"}, time_limit=1)
    with RewardSuite([config]) as suite:
        scores = suite.score(prompts(1), [["aab", "a" * 60, "aaaab"]])
    assert scores.components["format"][0][::2] == [1, 1]
    assert scores.kinds["format"] == {"timeout": 1}


@pytest.fixture(scope="module")
def libraries() -> Iterator[RewardSuite]:
    """One worker with both libraries: importing them takes longest."""
    configs = [
        RewardConfig(reward="math_verify"),
        RewardConfig(reward="reasoning_gym"),
        RewardConfig(reward="reasoning_gym", name="lenient", params={"unreadable": "zero"}),
    ]
    with RewardSuite(configs) as suite:
        yield suite


def test_math_verify(libraries: RewardSuite) -> None:
    pairs = [
        ("\\frac{1}{2}", "\\boxed{0.5}", 1),
        ("x^2+2x+1", "\\boxed{(x+1)^2}", 1),
        ("372", "answer: 372", 1),
        ("372", "answer: $372.0$", 1),
        ("372", "answer: 371", 0),
        ("372", "answer: )(", 0),
        ("372", "372", 0),  # no answer is named
        ("\\{1, 2\\}", "\\boxed{\\{2, 1\\}}", 1),
    ]
    scores = libraries.score(
        [Prompt(str(i), "?", gold) for i, (gold, _, _) in enumerate(pairs)], [[t] for _, t, _ in pairs]
    )
    assert [group[0] for group in scores.components["math_verify"]] == [score for _, _, score in pairs]
    # none of these prompts came from reasoning_gym: errors, not zeros; but no answer is a zero anywhere
    assert scores.errors["reasoning_gym"] == len(pairs) - 1
    assert "no source_dataset" in scores.examples["reasoning_gym"]


GYM: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2},
    "basic_arithmetic": {},
    "countdown": {},
    "word_ladder": {"min_word_length": 3, "max_word_length": 3},
    "arc_1d": {},
    "rearc": {},
    "mini_sudoku": {},
    "game_of_life_halting": {},
    "prime_factorization": {},
    "composite": {"datasets": [{"name": "leg_counting"}]},
}


def gym_prompt(name: str) -> Prompt:
    """A prompt as a task stores it."""
    entry = gym_dataset(name, GYM[name], seed=1)[0]
    metadata = decode(encode({**entry["metadata"], "gym_dataset": name, "gym_params": GYM[name]}))
    return Prompt(name, entry["question"], entry["answer"], metadata)


def test_reasoning_gym_scorers(libraries: RewardSuite) -> None:
    made = [gym_prompt(name) for name in GYM]
    texts = [[f"<answer>{p.answer}</answer>", "<answer>nonsense</answer>", "none"] for p in made]
    scores = libraries.score(made, texts)
    strict, lenient = scores.components["reasoning_gym"], scores.components["lenient"]
    assert [group[0] for group in strict] == [1] * len(GYM)
    assert [group[2] for group in strict] == [0] * len(GYM)
    wrong = {name: group[1] for name, group in zip(GYM, strict, strict=True)}
    # this scorer raises on what is no product of integers
    assert math.isnan(wrong.pop("prime_factorization"))
    assert all(0 <= score < 0.5 for score in wrong.values()), wrong
    assert [group[1] for group in lenient][list(GYM).index("prime_factorization")] == 0
    assert scores.errors["lenient"] == 0


# --- beside a sampler -------------------------------------------------------------------------------------------------


def scored(scoring: Scoring, asked: list[Prompt], texts: list[list[str]]) -> list[list[float | str]]:
    found = scoring.join(asked, texts).components["score"]
    return [["nan" if math.isnan(score) else score for score in group] for group in found]


def wait_for(file: Path, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert file.exists()


def test_a_slow_verifier_works_while_the_sampler_goes_on(judge: Callable[..., RewardSuite]) -> None:
    """The completion ends only when the sampler has done something after handing it over, and none is in a hurry."""
    suite, asked = judge(time_limit=60), prompts(2)
    with suite.begin() as scoring:
        scoring.add(asked[0], ["wait", "ab"])
        wait_for(Path("waiting"))  # a worker is at it, and nobody has asked for the scores yet
        Path("go").touch()
        wait_for(Path("went"))
        scores = scoring.join(asked, [["wait", "ab"], ["abc", "a"]])  # the second group was never handed over
    assert scores.components["score"] == [[6, 4], [5, 3]]
    assert scores.hidden > 0


def test_hang_crash_and_raise_while_the_sampler_goes_on(judge: Callable[..., RewardSuite]) -> None:
    suite, asked = judge(time_limit=0.5), prompts(3)
    texts = [["ab", "spin", "abc"], ["a", "die", "raise"], ["", "lock", "nan"]]
    with suite.begin() as scoring:
        for place in (2, 0, 1):  # in the order in which groups happened to end
            scoring.add(asked[place], texts[place])
        # The thread has seen to every deadline by itself: nothing is left when the scores are asked for.
        until = time.monotonic() + 20
        while scoring.waiting and time.monotonic() < until:
            time.sleep(0.05)
        assert not scoring.waiting
        assert scored(scoring, asked, texts) == [[4, "nan", 5], [3, "nan", "nan"], [2, "nan", "nan"]]
    found = suite.score(asked, texts)
    assert found.kinds == {"score": {"timeout": 2, "crash": 1, "error": 2}}
    assert found.examples["score"] == "no score within 0.5 s; the worker was killed"


def test_an_answer_in_time_that_is_read_late_is_no_timeout(judge: Callable[..., RewardSuite]) -> None:
    suite, asked = judge(time_limit=0.5), prompts(1)
    suite.wait_ready()
    with suite.begin() as scoring:
        scoring.add(asked[0], ["ab", "touch", "abc"])
        wait_for(Path("touched"))
        assert suite._pool is not None
        with suite._pool.queue.changed:  # the thread, and so the reading of answers, stands still
            time.sleep(1.2)
        assert scored(scoring, asked, [["ab", "touch", "abc"]]) == [[4, 7, 5]]


def test_a_hang_holds_up_no_other_batch_for_longer_than_its_limit(judge: Callable[..., RewardSuite]) -> None:
    suite, asked = judge(time_limit=1.0), prompts(2)
    with suite.begin() as first, suite.begin() as second:
        first.add(asked[0], ["spin", "ab"])
        second.add(asked[1], ["a"])
        assert scored(second, asked[1:], [["a"]]) == [[3]]
        assert scored(first, asked[:1], [["spin", "ab"]]) == [["nan", 4]]


def test_a_batch_that_is_given_up_leaves_nothing_behind(judge: Callable[..., RewardSuite]) -> None:
    suite, asked = judge(time_limit=60), prompts(2)
    with pytest.raises(KeyboardInterrupt), suite.begin() as scoring:
        scoring.add(asked[0], ["wait", "wait", "ab"])
        wait_for(Path("waiting"))
        raise KeyboardInterrupt
    scores = suite.score(asked[1:], [["abc", "wait"[:1]]])  # the worker that would wait for ever is replaced
    assert scores.components["score"] == [[5, 3]]
    assert not scores.errors["score"]


def test_a_reward_that_cannot_be_loaded_is_told_at_the_join(judge: Callable[..., RewardSuite], tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("import numpi\ndef score(prompt, completion): ...\n")
    suite, asked = judge(), prompts(1)
    for _ in range(2):
        with pytest.raises(UserError, match="No module named 'numpi'"), suite.begin() as scoring:
            scoring.add(asked[0], ["ab"])
            scoring.join(asked, [["ab"]])


def test_scores_do_not_depend_on_the_order_in_which_groups_end(judge: Callable[..., RewardSuite]) -> None:
    suite, asked = judge(workers=2, time_limit=20), prompts(6)
    texts = [["a" * (i + k % 2) for k in range(3)] for i in range(6)]
    expected = suite.score(asked, texts).components
    for order in (range(6), reversed(range(6)), (3, 1, 5)):
        with suite.begin() as scoring:
            for place in order:
                scoring.add(asked[place], texts[place])
            assert scoring.join(asked, texts).components == expected
