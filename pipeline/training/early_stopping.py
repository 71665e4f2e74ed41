"""Ending a stage before its last step: the rules of ``until`` and the collapse guard, with all that they remember.

Nothing here acts. The trainer passes in what it measures and gets a :class:`RuleEvent` where something is to be done.
The memory is plain data, so that a resumed stage decides as it would have without the interruption.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gradus.pipeline.common.shown import gradus_command
from gradus.pipeline.config import StageConfig
from gradus.pipeline.config.stopping import Guard, Plateau, Until
from gradus.pipeline.statistics.drops import mean_drop, paired_drop
from gradus.pipeline.statistics.intervals import gain_bounds, mean_bounds, share_bounds
from gradus.pipeline.types import State

SERIES = {"reward": "reward/mean", "entropy": "policy/entropy", "uniform": "group/uniform_share"}
"""name of a series that is remembered -> the metric that it holds."""


@dataclass(frozen=True)
class RuleEvent:
    """The decision of a rule."""

    step: int
    rule: str
    """An option of ``until``, or ``guard``."""
    action: Literal["end", "roll back", "slower", "stop"]
    """``end`` keeps the policy as it is, ``roll back`` hands over the best checkpoint; after ``slower`` the stage goes
    on from there with a smaller learning rate; ``stop`` fails it."""
    reason: str
    """One sentence, with the numbers."""


@dataclass(frozen=True)
class Best:
    """The measurement that later ones are compared with, and the checkpoint it belongs to."""

    step: int
    sample: list[float]
    """0 or 1 for each validation prompt, or the rewards of some steps."""

    @property
    def value(self) -> float:
        return sum(self.sample) / len(self.sample) if self.sample else float("-inf")


class EndRules:
    """The rules of ``until``, applied to the newest measurements."""

    def __init__(self, until: Until):
        self.until = until
        self.series: dict[str, list[list[float]]] = {name: [] for name in (*SERIES, "accuracy")}
        """(step, value) of what was measured last, oldest first."""

    def after_step(self, step: int, metrics: Mapping[str, float], spent: Mapping[str, float]) -> RuleEvent | None:
        """The step is done; ``spent`` has the stage's rollouts, tokens and seconds so far."""
        for name, metric in SERIES.items():
            if metric in metrics:
                self._remember(name, step, metrics[metric])
        plateau = self.until.plateau
        decided = self._budget(spent) or self._entropy() or self._uniform()
        if not decided and plateau is not None and plateau.of == "reward":
            decided = self._plateau(plateau)
        return RuleEvent(step, decided[0], "end", decided[1]) if decided else None

    def after_evaluation(self, step: int, correct: list[float]) -> RuleEvent | None:
        """The validation prompts were answered: 1 for each right one, 0 for the others."""
        count, right = len(correct), int(sum(correct))
        self._remember("accuracy", step, right / count)
        if self.until.accuracy is not None:
            low, _ = share_bounds(right, count, self.until.errors)
            if low >= self.until.accuracy:
                measured = f"validation accuracy {right / count:.3f} ({right:,} of {count:,} prompts)"
                goal = f"its lower bound {low:.3f} has reached {self.until.accuracy:g}"
                return RuleEvent(step, "accuracy", "end", f"{measured}: {goal}")
        plateau = self.until.plateau
        decided = self._plateau(plateau) if plateau is not None and plateau.of == "accuracy" else None
        return RuleEvent(step, decided[0], "end", decided[1]) if decided else None

    def forget(self) -> None:
        """Forget all measurements, because the policy was replaced."""
        self.series = {name: [] for name in self.series}

    def _remember(self, name: str, step: int, value: float) -> None:
        window = max(self.until.window, self.until.plateau.window if self.until.plateau else 0)
        self.series[name] = [*self.series[name], [step, value]][-window:]

    def _newest(self, name: str, count: int) -> list[float]:
        """The newest values; empty where there are fewer than ``count``."""
        found = [value for _, value in self.series[name][-count:]]
        return found if len(found) == count else []

    def _budget(self, spent: Mapping[str, float]) -> tuple[str, str] | None:
        for name, unit in (("rollouts", "rollouts"), ("tokens", "tokens"), ("seconds", "seconds of training")):
            budget = getattr(self.until, name)
            if budget is not None and spent[name] >= budget:
                return name, f"{spent[name]:,.0f} {unit}: the budget of {budget:,g} is spent"
        return None

    def _entropy(self) -> tuple[str, str] | None:
        floor, window = self.until.entropy, self.until.window
        if floor is None or not (values := self._newest("entropy", window)):
            return None
        high, mean = mean_bounds(values, self.until.errors)[1], sum(values) / window
        measured = f"entropy {mean:.3g} nats a token over the last {window} steps"
        return ("entropy", f"{measured}, at most {high:.3g}: below the floor of {floor:g}") if high < floor else None

    def _uniform(self) -> tuple[str, str] | None:
        limit, window = self.until.uniform, self.until.window
        if limit is None or not (values := self._newest("uniform", window)):
            return None
        low, mean = mean_bounds(values, self.until.errors)[0], sum(values) / window
        measured = f"{mean:.1%} of the groups of the last {window} steps were uniform, at least {low:.1%}"
        return ("uniform", f"{measured}: above the limit of {limit:.1%}") if low > limit else None

    def _plateau(self, plateau: Plateau) -> tuple[str, str] | None:
        points = self.series[plateau.of][-plateau.window :]
        if len(points) < plateau.window:
            return None
        steps, values = [point[0] for point in points], [point[1] for point in points]
        gain, _, high = gain_bounds(steps, values, self.until.errors)
        what = "validation accuracy" if plateau.of == "accuracy" else "the reward"
        measured = f"{what} gained {gain:.3f} from step {steps[0]:.0f} to {steps[-1]:.0f}, at most {high:.3f}"
        return ("plateau", f"{measured}: less than {plateau.gain:g}") if high < plateau.gain else None


class CollapseGuard:
    """Compares each measurement with the best one and counts how many in a row are significantly below it."""

    def __init__(self, guard: Guard, config: StageConfig):
        self.guard, self.level = guard, guard.level(config.steps, config.eval_every)
        self.below, self.slowed = 0, 0

    def falls(self, best: Best, now: list[float], others: Mapping[str, tuple[Best, list[float]]]) -> list[str]:
        """A clause for each measure that is significantly below what it is compared with; all share the risk."""
        paired, level = self.guard.watch == "accuracy", self.level / (1 + len(others))
        what = "validation accuracy" if paired else f"the reward of {self.guard.every} steps"
        found = []
        for name, (before, after) in {"": (best, now), **others}.items():
            if not before.sample:  # the reward of the stage's start is not known
                continue
            chance = paired_drop(before.sample, after) if paired else mean_drop(before.sample, after)
            if chance < level:
                measured = f"{what}{f' on {name}' if name else ''} fell from {before.value:.3f} at step {before.step}"
                found.append(
                    f"{measured} to {sum(after) / len(after):.3f} (p = {chance:.1g}, significant below {level:.1g}"
                )
        return found

    def compare(self, step: int, best: Best, falls: list[str], last: bool) -> RuleEvent | None:
        """A new measurement, with what fell; ``last`` where there will be no other to wait for."""
        self.below = self.below + 1 if falls else 0
        if not self.below or (self.below < self.guard.evaluations and not last):
            return None
        often = f", {self.below} times in a row" if self.below > 1 else ""
        reason = "; ".join(f"{clause}{often})" for clause in falls)
        action, outcome = self._action(best, last)
        self.below = 0
        return RuleEvent(step, "guard", action, f"{reason}: {outcome}")

    def _action(self, best: Best, last: bool) -> tuple[Any, str]:
        back, factor = f"back to step {best.step}", self.guard.factor
        if self.guard.then == "stop":
            return "stop", f"the checkpoint of step {best.step} is the best"
        if self.guard.then == "slower" and self.slowed < self.guard.times and not last:
            self.slowed += 1
            return "slower", f"{back} and on with {factor**self.slowed:g} of the learning rate"
        spent = f" after {self.slowed} smaller learning rates" if self.slowed else ""
        return "roll back", f"{back}, which is handed over{spent}"


class EarlyStopping:
    """Everything that may end a stage early or roll it back."""

    def __init__(self, config: StageConfig):
        self.config, self.events = config, list[RuleEvent]()
        self.rules = EndRules(config.until or Until())
        self.guard = CollapseGuard(config.guard, config) if config.guard is not None else None
        self.by_reward = config.guard is not None and config.guard.watch == "reward"
        self.keeps_best = self.guard is not None or config.handover == "best"
        self.best: Best | None = None
        self.block: list[float] = []
        """Rewards since ``candidate``."""
        self.candidate: int | None = None
        """The checkpoint whose policy the measurement of the reward under way began with."""
        self.others: dict[str, list[float]] = {}
        """name -> 0 or 1 for each validation prompt at the stage's start, of the other tasks that the guard watches."""

    def begin(self, correct: list[float], others: Mapping[str, list[float]] | None = None) -> None:
        """The stage's start is its first best; ``correct`` is empty where the reward is what counts."""
        self.best, self.candidate, self.others = Best(0, correct), 0 if self.by_reward else None, dict(others or {})

    def after_step(
        self, step: int, metrics: Mapping[str, float], spent: Mapping[str, float], last: bool
    ) -> RuleEvent | None:
        """The step is done; ``last`` where there will be no other."""
        event = self.rules.after_step(step, metrics, spent)
        if not self.by_reward or self.guard is None:
            return event
        if "reward/mean" not in metrics:  # no completion of the step could be scored
            return event
        self.block.append(metrics["reward/mean"])
        if len(self.block) < self.guard.guard.every:
            return event
        now, began = self.block, self.candidate
        self.block, self.candidate = [], step
        return self._compare(step, began or 0, now, last or event is not None) or event

    def after_evaluation(
        self, step: int, correct: list[float], last: bool, others: Mapping[str, list[float]] | None = None
    ) -> RuleEvent | None:
        """The validation prompts were answered: 1 for each right one, 0 for the others; ``others``: of other tasks."""
        event = self.rules.after_evaluation(step, correct)
        if not self.keeps_best or self.by_reward:
            return event
        return self._compare(step, step, correct, last or event is not None, others) or event

    def _compare(
        self, step: int, checkpoint: int, now: list[float], last: bool, others: Mapping[str, list[float]] | None = None
    ) -> RuleEvent | None:
        """A measurement of the policy of a checkpoint: a new best, or one to compare with it.

        A policy that has broken another task is never the best.
        """
        assert self.best is not None
        pairs = {name: (Best(0, self.others[name]), values) for name, values in (others or {}).items()}
        falls = self.guard.falls(self.best, now, pairs) if self.guard is not None else []
        if not falls and sum(now) / len(now) > self.best.value:
            self.best = Best(checkpoint, now)
        return self.guard.compare(step, self.best, falls, last) if self.guard is not None else None

    def record(self, event: RuleEvent) -> None:
        """Record an event and reset the rules that it invalidates."""
        self.events.append(event)
        if event.action == "slower":
            self.rules.forget()
            self.block, self.candidate = [], event.step if self.by_reward else None

    @property
    def kept(self) -> set[int]:
        """Steps whose checkpoints must stay."""
        steps = (self.best.step if self.best is not None else None, self.candidate)
        return {step for step in steps if step is not None}

    @property
    def end(self) -> RuleEvent | None:
        """The event that ended the stage."""
        return self.events[-1] if self.events and self.events[-1].action != "slower" else None

    @property
    def rate_factor(self) -> float:
        """The factor on the learning rate."""
        return self.guard.guard.factor**self.guard.slowed if self.guard is not None else 1.0

    def handed_over(self, last: int) -> int:
        """The step whose checkpoint the next stage starts from."""
        goes_back = self.config.handover == "best" or (self.end is not None and self.end.action == "roll back")
        return self.best.step if goes_back and self.best is not None else last

    def state(self) -> State:
        """Everything that is remembered."""
        state: State = {"events": [asdict(event) for event in self.events], "series": self.rules.series}
        state |= {"best": asdict(self.best) if self.best else None, "block": self.block, "candidate": self.candidate}
        state |= {"others": self.others} if self.others else {}
        return state | ({"below": self.guard.below, "slowed": self.guard.slowed} if self.guard else {})

    def restore(self, state: State) -> None:
        """Continue from :meth:`state`."""
        self.events = [RuleEvent(**event) for event in state["events"]]
        self.rules.series = state["series"]
        self.best = Best(**state["best"]) if state["best"] else None
        self.block, self.candidate, self.others = state["block"], state["candidate"], state.get("others", {})
        if self.guard is not None:
            self.guard.below, self.guard.slowed = state["below"], state["slowed"]


def stopped_by_guard(config: StageConfig, event: RuleEvent, best: Path, run: Path) -> str:
    """The message of a stage of ``run`` that the guard has stopped; ``best`` is the checkpoint that it keeps."""
    words = ["--from", config.label, "--set", f"stages.{config.label}.lr={config.lr / 3:.1g}"]
    slower = f"`{gradus_command('fork', run.name, *words, runs=run.parent)}` tries a smaller learning rate"
    again = f"{slower}, guard.then=hand_over makes do with that checkpoint"
    return f"the guard stopped it: at step {event.step} {event.reason} and is kept in {best}. {again}"
