"""How often the rules of early stopping are wrong or slow, by simulation."""

from __future__ import annotations

import math

import numpy
import pytest

from gradus.pipeline.config import StageConfig
from gradus.pipeline.statistics.drops import paired_drop
from gradus.pipeline.training.early_stopping import EarlyStopping

# How often the rules are wrong, and how often they are right.

RUNS = 200
PROMPTS = 300


def stage(steps: int = 300, **options: object) -> StageConfig:
    return StageConfig.model_validate({"stage": "x", "steps": steps, "eval_every": 10, **options})


def ended(config: StageConfig, rule: str, chance: numpy.random.Generator, curve, until: int | None = None) -> bool:
    """Whether the rule ends a stage whose steps measure ``curve(step) -> (metrics, correct)``."""
    switches = EarlyStopping(config)
    if switches.keeps_best:
        switches.begin([] if switches.by_reward else curve(0, chance)[1])
    spent = {"rollouts": 0, "tokens": 0, "seconds": 0}
    for step in range(1, (until or config.steps) + 1):
        metrics, correct = curve(step, chance)
        last = step == config.steps
        event = switches.after_step(step, metrics, spent, last)
        if step % config.eval_every == 0 and correct is not None:
            event = switches.after_evaluation(step, correct, last) or event
        if event is not None:
            assert event.rule == rule
            return True
    return False


def share(config: StageConfig, rule: str, curve_of, until: int | None = None) -> float:
    """Share of simulated stages that the rule ends."""
    chance = numpy.random.default_rng(0)
    return sum(ended(config, rule, chance, curve_of(chance), until) for _ in range(RUNS)) / RUNS


def answers(accuracy_at, flips: float = 0.2):
    """Stages whose policy has this accuracy: each prompt has a difficulty, and wavers around it from one evaluation to
    the next, so that about ``flips`` of the prompts change sides; the sample of prompts is lucky or not for a whole
    stage."""
    from scipy.special import ndtri

    def curve_of(chance: numpy.random.Generator):
        hard = chance.standard_normal(PROMPTS) * math.sqrt(1 - flips)

        def curve(step: int, chance: numpy.random.Generator):
            if step % 10:
                return {}, None
            mood = chance.standard_normal(PROMPTS) * math.sqrt(flips)
            return {}, (hard + mood < ndtri(accuracy_at(step))).astype(float).tolist()

        return curve

    return curve_of


def steps(name: str, mean_at, spread: float):
    """Stages whose steps measure this mean, with independent noise."""

    def curve_of(chance: numpy.random.Generator):
        return lambda step, chance: ({name: mean_at(step) + spread * chance.standard_normal()}, None)

    return curve_of


def test_the_guard_hardly_ever_alarms_where_nothing_got_worse_and_sees_a_fall() -> None:
    config = stage(guard={"risk": 0.01})
    assert share(config, "guard", answers(lambda step: 0.6)) <= 0.01
    fall = answers(lambda step: 0.6 if step < 150 else 0.45)
    assert share(config, "guard", fall) >= 0.95
    assert share(config, "guard", fall, until=170) >= 0.85, "after three evaluations"


def test_what_the_guards_care_is_worth() -> None:
    """The usual test at 5 %, uncorrected, of each evaluation against the best so far alarms in most flat stages."""
    chance = numpy.random.default_rng(0)
    alarms = 0
    for _ in range(RUNS // 2):
        curve, best, alarmed = answers(lambda step: 0.6)(chance), [0.0] * PROMPTS, False
        for step in range(0, 301, 10):
            _, now = curve(step, chance)
            best = now if sum(now) > sum(best) else best
            alarmed = alarmed or paired_drop(best, now) < 0.05
        alarms += alarmed
    assert alarms / (RUNS // 2) >= 0.9


def test_the_guard_of_the_reward() -> None:
    config = stage(guard={"watch": "reward", "every": 10, "risk": 0.01})
    assert share(config, "guard", steps("reward/mean", lambda step: 0.6, 0.05)) <= 0.01
    fall = steps("reward/mean", lambda step: 0.6 if step < 150 else 0.4, 0.05)
    assert share(config, "guard", fall, until=180) >= 0.9
    rise = steps("reward/mean", lambda step: 0.3 + 0.001 * step, 0.05)
    assert share(config, "guard", rise) <= 0.01


def test_the_accuracy_that_is_to_be_reached() -> None:
    config = stage(until={"accuracy": 0.6})
    assert share(config, "accuracy", answers(lambda step: 0.6), until=10) <= 0.07, "one evaluation at the target: 5 %"
    assert share(config, "accuracy", answers(lambda step: 0.55)) <= 0.1, "thirty evaluations five points below it"
    assert share(config, "accuracy", answers(lambda step: 0.5)) == 0.0
    assert share(config, "accuracy", answers(lambda step: 0.7)) >= 0.95


def test_the_plateau_of_accuracy() -> None:
    config = stage(until={"plateau": {"window": 8, "gain": 0.02}})
    window = 70  # steps from the first to the last of 8 evaluations
    rising = {gain: answers(lambda step, gain=gain: 0.3 + gain * step / window) for gain in (0.02, 0.04, 0.08)}
    one_look = {gain: share(config, "plateau", curve, until=80) for gain, curve in rising.items()}
    assert one_look[0.02] <= 0.07, "at the least gain itself: 5 %"
    assert one_look[0.04] <= 0.02
    assert share(config, "plateau", rising[0.08]) <= 0.02, "in a whole stage that gains four times as much"
    assert share(config, "plateau", answers(lambda step: 0.6)) >= 0.8, "in a whole stage that gains nothing"


def test_the_plateau_of_the_reward() -> None:
    config = stage(until={"plateau": {"of": "reward", "window": 50, "gain": 0.04}})
    assert share(config, "plateau", steps("reward/mean", lambda step: 0.3 + 0.04 * step / 49, 0.05), until=50) <= 0.07
    assert share(config, "plateau", steps("reward/mean", lambda step: 0.3 + 0.12 * step / 49, 0.05)) <= 0.02
    assert share(config, "plateau", steps("reward/mean", lambda step: 0.6, 0.05)) >= 0.95


@pytest.mark.parametrize(
    ("rule", "metric", "far"), [("entropy", "policy/entropy", 0.4), ("uniform", "group/uniform_share", 0.6)]
)
def test_floor_and_limit(rule: str, metric: str, far: float) -> None:
    config = stage(until={rule: 0.5})
    at_it, beyond = (steps(metric, lambda step, mean=mean: mean, 0.08) for mean in (0.5, far))
    before = steps(metric, lambda step: 1 - far, 0.08)
    assert share(config, rule, at_it, until=10) <= 0.09, "one look at the very limit: 5 %, and what 200 stages tell"
    assert share(config, rule, before) <= 0.01
    assert share(config, rule, beyond, until=30) >= 0.95


def test_steps_that_nobody_could_score_are_no_collapse() -> None:
    """The guard of the reward waits for as many steps with a reward, whatever lies between them."""
    stopping = EarlyStopping(stage(guard={"watch": "reward", "every": 5}, eval_every=0))
    stopping.begin([])
    spent = {"rollouts": 0, "tokens": 0, "seconds": 0}
    for step in range(1, 41):
        metrics = {"reward/mean": 0.9 + step % 2 / 100} if step <= 5 or step > 30 else {}
        assert stopping.after_step(step, metrics, spent, last=False) is None
    assert stopping.best is not None and len(stopping.best.sample) == 5
    assert min(stopping.best.sample) >= 0.9


RIGHT, WRONG = [1.0] * 40, [0.0] * 40
HALF = [1.0, 0.0] * 20


def guarded(**options: object) -> EarlyStopping:
    """The start of a stage that watches another task, half of its own prompts right and all of the other's."""
    stopping = EarlyStopping(stage(30, guard={"tasks": "all", "evaluations": 1, **options}))
    stopping.begin(HALF, {"sums": RIGHT})
    return stopping


def test_a_stage_that_breaks_another_task_goes_back_to_what_broke_none() -> None:
    stopping = guarded()
    assert stopping.after_evaluation(10, RIGHT[:30] + WRONG[:10], False, {"sums": RIGHT}) is None
    assert stopping.best is not None and stopping.best.step == 10
    event = stopping.after_evaluation(20, RIGHT, False, {"sums": WRONG})
    assert event is not None and event.action == "roll back"
    assert "validation accuracy on sums fell from 1.000 at step 0 to 0.000" in event.reason
    assert stopping.best.step == 10, "a policy that is better at its own task and broke another is not the best"
    stopping.record(event)
    assert stopping.handed_over(20) == 10


def test_what_the_other_task_was_at_the_start_outlives_a_resume() -> None:
    stopping, resumed = guarded(), EarlyStopping(stage(30, guard={"tasks": "all", "evaluations": 1}))
    resumed.restore(stopping.state())
    event = resumed.after_evaluation(10, HALF, False, {"sums": WRONG})
    assert event is not None and "sums" in event.reason


def test_the_risk_of_a_false_alarm_is_shared_by_the_tasks() -> None:
    """A fall that alone would be an alarm is none where two tasks are watched."""
    falling = [0.0] * 14 + [1.0] * 26  # p = 2^-14 = 6.1e-5; three looks: 0.01 / 6 = 1.7e-3, and a half of it with two
    for risk, alarmed in ((0.01, True), (2.0**-14 * 6 * 1.5, False), (2.0**-14 * 12 * 1.5, True)):
        event = guarded(risk=risk).after_evaluation(10, HALF, False, {"sums": falling})
        assert (event is not None) is alarmed, risk
