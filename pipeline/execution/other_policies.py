"""The policies that a stage names beside the one that it trains: where they are, and how they are loaded."""

from __future__ import annotations

from pathlib import Path

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.training.objective import PREVIOUS, START, chosen_policies
from gradus.pipeline.policy.loading import load_policy
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.runs.checkpoint import verified_record
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.training.other_policies import OtherPolicies


def other_policies(run: RunFolder, index: int, parent: Path, policy: Policy) -> dict[str, OtherPolicies]:
    """option -> the frozen policies that a stage's options choose, each of them loaded once.

    ``reference: previous`` is left out: a copy of the policy itself is that.
    Raises: UserError where one is damaged, or has another vocabulary than ``policy``.
    """
    stage, loaded = run.config.stages[index], dict[str, Policy]()
    found: dict[str, OtherPolicies] = {}
    for option, by_task in chosen_policies(stage).items():
        if option == "reference" and by_task == {"": PREVIOUS}:
            continue
        for name in by_task.values():
            if name not in loaded:
                loaded[name] = _loaded(run, place_of(run, name, parent), policy, f"stages.{stage.label}.{option}")
        found[option] = OtherPolicies({task: loaded[name] for task, name in by_task.items()})
    return found


def place_of(run: RunFolder, name: str, parent: Path) -> str:
    """The folder or Hub id of a policy that a stage names; ``parent`` is the checkpoint that the stage starts from."""
    if name == PREVIOUS:
        return str(parent)
    record = (run.start() or {}) if name == START else None
    if record is None and name in [stage["name"] for stage in run.outline]:
        record = run.result(run.stage_index(name)) or {}
    if record is None:
        return name
    verified_record(Path(record["checkpoint"]))
    return record["checkpoint"]


def _loaded(run: RunFolder, place: str, student: Policy, where: str) -> Policy:
    """A frozen policy. Raises: UserError."""
    config = run.config.policy.model_copy(update={"lora": None, "revision": None})
    try:
        policy = load_policy(place, config)
    except UserError as error:
        raise UserError(error.what, where=where, got=error.got, expected=error.expected, fix=error.fix) from None
    own, other = student.tokenizer.get_vocab(), policy.tokenizer.get_vocab()
    if own != other:
        differing = sum(own.get(token) != number for token, number in other.items())
        got = f"{place}, with {len(other):,} tokens, {differing:,} of them unknown or of another number"
        raise UserError(
            "two policies with different vocabularies cannot read each other's tokens",
            where=where,
            got=got,
            expected=f"the policy's own {len(own):,} tokens",
            fix="choose a model of the same family",
        )
    policy.model.requires_grad_(False)
    return policy
