"""The cost of a stage, computed from the measurements of a probe. Pure arithmetic: a model of the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradus.pipeline.config import StageConfig
from gradus.pipeline.config.checks import profile_size
from gradus.pipeline.stage import Needs

if TYPE_CHECKING:
    from gradus.pipeline.estimates.probe import Speed

OPTIMIZER_COPIES = 3
"""Gradients and both of Adam's moments, each as large as the weights."""
PREDICTION = 1 / 3
"""Share of an update's time that a forward pass alone takes."""


@dataclass(frozen=True)
class StageCost:
    """The estimated cost of one stage."""

    label: str
    steps: int
    step_seconds: float
    rollouts: int
    """Completions of a step, with those of a reference policy."""
    useful: float | None
    """Expected share of groups with weights other than zero; None where it is not known."""
    memory_bytes: int
    """Peak memory of the training process, or of its device."""
    profile_rollouts: int = 0
    """Completions that are sampled before the first step, to profile the prompts."""
    profile_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """The time of all steps, and of the profile before them."""
        return self.profile_seconds + self.steps * self.step_seconds


def stage_cost(
    config: StageConfig, needs: Needs, speed: Speed, length: float, useful: float | None, prompts: int = 0
) -> StageCost:
    """Estimate the time and the memory of a stage.

        step = n * length / sampling speed + n * scoring + updates * trained tokens / learning speed

    where n is P * K completions; twice as many where a reference policy is sampled too, and 1 / ``useful`` times as
    many, up to the limit on refills, where uniform groups are replaced. Where they are not replaced, the share
    1 - ``useful`` of completions, whose groups have zero weight, is not trained on. A token critic counts as a second
    learner with one more forward pass; a reference or a teacher that reads the completions takes such a pass, too.
    Memory is the peak of the probe, which held the weights twice beside gradients and moments, plus every further copy
    that the stage keeps.

    ``length``: mean tokens of a completion. ``useful``: share of groups with weights other than zero; where it is not
    known (None), all groups count. ``prompts``: the training prompts of the stage, all of which a profile answers.
    Departure: evaluations, checkpoints and the passes for the curve of KL, some 5 to 10 % of a run, are left out.
    """
    completions = config.prompts_per_step * config.group_size
    given = needs.completions != "policy"
    sampled = 0 if given else completions * (2 if needs.reference_rewards else 1)
    share = 1.0 if useful is None else useful
    rounds = min(needs.refills + 1.0, 1 / share if share else needs.refills + 1.0)
    trained = completions * length * min(1.0, share * rounds)
    completion_seconds = length / speed.sample_tokens_per_second + speed.score_seconds
    profiled = profile_size(config) * prompts
    seconds = sampled * rounds * completion_seconds
    seconds += config.updates_per_batch * trained / speed.update_tokens_per_second
    has_network = needs.critic is not None and needs.critic.kind == "token"
    if has_network:
        seconds += (config.updates_per_batch + PREDICTION) * completions * length / speed.update_tokens_per_second
    readings = (needs.reference_reads(config) + needs.teacher_logprobs) * completions * length
    seconds += PREDICTION * readings / speed.update_tokens_per_second
    measures_kl = config.kl_every > 0 and not given
    copies = needs.reference + measures_kl + bool(config.async_)
    copies += (1 + OPTIMIZER_COPIES) * has_network
    memory = speed.peak_bytes + (copies - 1) * speed.weight_bytes
    rollouts = round(sampled * rounds) or completions
    profile = (profiled, profiled * completion_seconds)
    return StageCost(config.label, config.steps, seconds, rollouts, useful, memory, *profile)
