"""gradus's half: from the scored batch to the gradient that the optimizer would get."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.trl_losses.batch import ARCHITECTURE, Found, Policies
from benchmarks.trl_losses.cases import GROUP, LONGEST, PROMPTS, Case
from torch import Tensor

from gradus.pipeline.advantages import centre, standardise
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config.pipeline import pipeline_model
from gradus.pipeline.stage import Signals
from gradus.pipeline.training.learned import Learned
from gradus.pipeline.training.other_policies import OtherPolicies
from gradus.pipeline.training.setup import Setup
from gradus.pipeline.types import Rollouts
from gradus.stages import discover

SHARES = ("mask/truncated", "mask/tokens", "mask/sequences", "update/importance_capped")


def setup_of(case: Case, policies: Policies, folder: Path) -> Setup:
    """What the trainer would be given, as far as the update reads it."""
    stages = discover()
    options = {"stage": case.stage, "steps": 10, "grad_clip": 1e9, "warmup": 0, "prompts_per_step": PROMPTS}
    options |= {"async": int(case.sampler == "earlier")} | ({} if case.stage == "dpo" else {"group_size": GROUP})
    raw = {
        "name": "losses",
        "policy": {"architecture": ARCHITECTURE, "device": "cpu"},
        "task": {"source": "file", "path": "none.jsonl"},
        "rewards": [{"reward": "exact_answer"}],
        "sampling": {"max_tokens": LONGEST},
        "stages": [options | case.ours],
    }
    config = pipeline_model([stage.config for stage in stages.values()]).model_validate(raw)
    unread: Any = None
    other = OtherPolicies({"": policies.reference})
    return Setup(
        policy=policies.now,
        stage=stages[case.stage],
        config=config.stages[0],
        pipeline=config,
        tasks=unread,
        suite=unread,
        journal=unread,
        observer=Observer(),
        folder=folder,
        parent_folder=folder,
        parent="",
        fingerprint="",
        others={"reference": other, "teacher": other},
    )


def of_gradus(case: Case, policies: Policies, rollouts: Rollouts) -> Found:
    """What the learner gives its optimizer."""
    seen, gradient, unread = list[Signals](), dict[str, Tensor](), None

    def read() -> None:
        found = {name: value.grad for name, value in policies.now.model.named_parameters()}
        gradient.update({name: value.clone() for name, value in found.items() if value is not None})

    with tempfile.TemporaryDirectory() as folder:
        setup = setup_of(case, policies, Path(folder))
        weigh = setup.stage.weigh

        def watched(signals: Signals, config: Any) -> Tensor:
            seen.append(signals)
            return weigh(signals, config)

        learned = Learned(replace(setup, stage=replace(setup.stage, weigh=watched)), unread)  # type: ignore[arg-type]
        learned.learner.optimizer.step = read  # type: ignore[method-assign]
        rollouts = learned.prepared(rollouts, 1)
        metrics, _ = learned.update(rollouts, 1, learned.weigher(rollouts, 1))
    loss = literal(seen[0], setup.config) if case.stage in ("gspo", "dpo") else metrics["update/loss"]
    return Found(gradient, loss, next((metrics[name] for name in SHARES if name in metrics), None))


def literal(signals: Signals, config: Any) -> float:
    """The loss of GSPO or DPO, as their papers have it, of the scores that the stage was given."""
    if config.stage == "gspo":
        assert signals.policy_scores_PK is not None and signals.rollout_scores_PK is not None
        weighed = standardise if config.advantage == "standardised" else centre
        advantages_PK, (low, high) = weighed(signals.rewards_PK, signals.valid_PK), config.sequence_clip
        ratio_PK = (signals.policy_scores_PK - signals.rollout_scores_PK).exp()
        return -float(torch.minimum(ratio_PK * advantages_PK, ratio_PK.clamp(1 - low, 1 + high) * advantages_PK).mean())
    assert signals.policy_scores_PK is not None and signals.reference_scores_PK is not None
    chosen, rejected = (config.beta * (signals.policy_scores_PK - signals.reference_scores_PK)).unbind(-1)
    apart = (chosen - rejected).sigmoid()
    losses = {
        "sigmoid": -apart.log(),
        "apo_zero": 1 - chosen.sigmoid() + rejected.sigmoid(),
        "apo_down": chosen.sigmoid() + 1 - apart,
    }
    return float(losses[config.loss].mean())
