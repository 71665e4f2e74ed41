"""The jobs of a comparison in their order: tuning on a separate seed, then the bases, then every arm on every seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gradus.flows.compare.measures import measure
from gradus.flows.compare.plan.arms import BASE, Arm
from gradus.flows.compare.plan.folder import ComparisonFolder, arm_run
from gradus.flows.compare.plan.job import Job
from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.statistics.curves import tail_mean

TUNING_SEED = 1000
"""The seed on which options are tuned, unless another one is given."""
SCORED_SHARE = 0.25
"""The share at the end of the learning curve whose mean is the score of a tuning run; one evaluation is noisy."""


@dataclass(frozen=True)
class Tuning:
    """An option and the values that every arm tries, written ``lr=3e-5,1e-4``."""

    key: str
    values: tuple[str, ...]
    seed: int = TUNING_SEED

    @classmethod
    def parse(cls, text: str, seed: int, reported: Sequence[int]) -> Tuning:
        """The tuning that ``--tune`` asks for; ``reported`` are the seeds of the report. Raises: UserError."""
        key, _, values = text.partition("=")
        found = tuple(dict.fromkeys(filter(None, map(str.strip, values.split(",")))))
        if not re.fullmatch(r"[a-z_.]+", key) or len(found) < 2:
            expected = "an option of the stages and two or more values, such as lr=3e-5,1e-4,3e-4"
            raise UserError("there is nothing to choose between", where="--tune", got=text, expected=expected)
        if seed in reported:
            fix = f"a --tune-seed other than {', '.join(map(str, reported))}"
            what = "the seed for tuning is also one of the reported seeds"
            raise UserError(what, where="--tune-seed", got=str(seed), fix=fix)
        return cls(key, found, seed)


@dataclass
class ComparisonWork:
    """All jobs of a comparison, and what tuning has chosen so far."""

    folder: ComparisonFolder
    seeds: Sequence[int]
    tuning: Tuning | None = None
    jobs: list[Job] = field(default_factory=list)
    chosen: dict[str, dict[str, object]] = field(default_factory=dict)
    """arm -> {"value": the chosen value, "scores": {value: validation accuracy, or None if it failed}}."""

    def __post_init__(self) -> None:
        plan, tuning = self.folder.plan, self.tuning
        tuned: dict[str, tuple[str, ...]] = {}
        if tuning is not None:
            base = f"tune-{BASE}"
            self.jobs.append(Job(base, BASE, tuning.seed, "tuning base", lambda: self.folder.base(tuning.seed, base)))
            for arm in plan.arms:
                trials = [self._trial(arm, value, tuning, base) for value in tuning.values]
                tuned[arm.label] = tuple(job.name for job in trials)
                self.jobs += trials
        for seed in self.seeds:
            self.jobs.append(self._base(seed))
        for seed in self.seeds:
            self.jobs += [self._arm(arm, seed, tuned.get(arm.label, ())) for arm in plan.arms]

    def _base(self, seed: int) -> Job:
        name = arm_run(BASE, seed)
        return Job(name, BASE, seed, f"{BASE} seed {seed}", lambda: self.folder.base(seed, name))

    def _trial(self, arm: Arm, value: str, tuning: Tuning, base: str) -> Job:
        name = f"tune-{arm.label}-{tuning.key.replace('_', '-')}-{value}"
        changed = replace(arm, changes=(*arm.changes, f"{tuning.key}={value}"))
        self.folder.plan.arm(changed, tuning.seed)  # an invalid value is an error before anything is trained
        title = f"{arm.label} {tuning.key}={value}"

        def make() -> RunFolder:
            return self.folder.arm(changed, tuning.seed, base, name)

        return Job(name, arm.label, tuning.seed, title, make, (base,), needed=False)

    def _arm(self, arm: Arm, seed: int, trials: tuple[str, ...]) -> Job:
        name, base = arm_run(arm.label, seed), arm_run(BASE, seed)

        def make() -> RunFolder:
            return self.folder.arm(self.tuned_arm(arm), seed, base, name)

        return Job(name, arm.label, seed, f"{arm.label} seed {seed}", make, (*trials, base))

    def tuned_arm(self, arm: Arm) -> Arm:
        """The arm with the value that scored best on the validation prompts of the tuning seed.

        Raises: StageFailed if every value failed.
        """
        if self.tuning is None:
            return arm
        trials = [job for job in self.jobs if job.arm == arm.label and job.seed == self.tuning.seed]
        scores = dict(zip(self.tuning.values, map(self._score, trials), strict=True))
        known = {value: score for value, score in scores.items() if score is not None}
        if not known:
            raise StageFailed(f"every value of {self.tuning.key} failed for the arm {arm.label}")
        best = max(known, key=lambda value: known[value])
        self.chosen[arm.label] = {"value": best, "scores": scores}
        return replace(arm, changes=(*arm.changes, f"{self.tuning.key}={best}"))

    def _score(self, job: Job) -> float | None:
        """Mean validation accuracy at the end of a tuning run's curve; None if the run failed."""
        assert self.tuning is not None
        if job.run is None or job.run.summary() is None:
            return None
        curve = measure(job.run, self.folder.open(f"tune-{BASE}"), job.arm, job.seed)["curve"]
        return round(tail_mean(curve, SCORED_SHARE), 6)

    def reported(self) -> list[Job]:
        """The jobs whose results the report shows."""
        return [job for job in self.jobs if job.needed and job.arm != BASE]
