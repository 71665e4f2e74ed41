"""The whole configuration: its sections from what was found, and its text with the reasons."""

from __future__ import annotations

import os
import re
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradus.flows.init import data as datasets
from gradus.flows.init import model as models
from gradus.flows.init.answers import CHOSEN, PLACEHOLDER, rewards_for
from gradus.flows.init.batches import fit
from gradus.flows.init.guesses import Guesses
from gradus.flows.init.lengths import set_lengths
from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import write_text
from gradus.pipeline.common.shown import gradus_command, shown_path, visible
from gradus.pipeline.config.loading import load_config
from gradus.pipeline.estimates.hardware import Hardware
from gradus.pipeline.execution.preflight import preflight
from gradus.pipeline.stage import Stage

ASKED = re.compile(r"\\boxed|####|<answer>|\banswer\s*:", re.IGNORECASE)
"""What a question contains that says how to mark the answer."""
FEWEST = 50
"""Validation prompts below which they would tell too little."""
SYSTEM = "Think step by step, and end with a line of its own: `answer: X`, where X is the final answer."


@dataclass(frozen=True)
class Proposal:
    """A configuration and the guesses in it."""

    data: dict[str, Any]
    guesses: Guesses
    runnable: bool
    """Whether a reward fits, or demonstrations can be imitated without one."""


def propose(
    model: str | None, data: str | None, task: str | None, target: Path | None, machine: Hardware | None,
    stages: Mapping[str, Stage],
) -> Proposal:  # fmt: skip
    """Look at a model and the first rows of data, and guess the rest. Raises: UserError where either is unusable."""
    if bool(data) == bool(task):
        raise UserError(
            "give either data or a task", where="--data, --task", got="both" if data else "neither",
            expected="--data with a file, folder, pattern or Hub id, or --task reasoning_gym:NAME", fix="name one",
        )  # fmt: skip
    guesses, folder = Guesses(), (target or Path()).absolute().parent if target else Path.cwd()
    policy = models.look_at(model, folder, guesses)
    found = datasets.look_at(data, folder, guesses) if data else datasets.generated(task or "", guesses)
    rewards = rewards_for(found, guesses)
    config: dict[str, Any] = {"name": _name(target.stem if target else found.name), "seed": 0}
    config |= {"policy": policy.policy, "task": found.task, "rewards": rewards or [dict(PLACEHOLDER)], "sampling": {}}
    _set_splits(found, guesses)
    if rewards is not None:
        _tell_marker(config, policy, found, guesses)
    set_lengths(config, policy, found, guesses)
    config["stages"] = _chain(policy, found, rewards, guesses)
    fit(config, policy.found, machine, stages, guesses)
    return Proposal(config, guesses, rewards is not None or found.demonstrated)


def write(proposal: Proposal, target: Path, origin: str, stages: Mapping[str, Stage]) -> list[str]:
    """Check the configuration as ``gradus check`` does, and write it; returns what the check notes beside the guesses.

    Raises: UserError where it does not pass, or the file exists.
    """
    text = _text(proposal, target, origin)
    folder = target.absolute().parent  # where relative paths start
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".", suffix=".yaml", encoding="utf-8") as trial:
        trial.write(text)
        trial.flush()
        loaded = load_config(trial.name, [], [stage.config for stage in stages.values()])
    notes = preflight(loaded.config, folder, stages, None, str(target))
    check_target(target)
    write_text(target.absolute(), text)
    return [note for note in notes if ": format " not in note]  # which is among the guesses


def check_target(target: Path) -> None:
    """Check that the file can be made, before anything is looked at. Raises: UserError."""
    folder = target.absolute().parent
    if target.suffix not in (".yaml", ".yml"):
        raise UserError("a configuration is a YAML file", where="NEW.yaml", got=target, expected="a name in .yaml")
    if os.path.lexists(target):
        raise UserError(
            "this file exists, and init replaces none", where="NEW.yaml", got=target,
            fix="name another one, as in `gradus init second.yaml ...`, or move this one away",
        )  # fmt: skip
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        expected = "an existing folder that can be written"
        raise UserError("this file cannot be made", where="NEW.yaml", got=target, expected=expected, fix="name another")


def _name(text: str) -> str:
    """A text as the name of a pipeline."""
    return re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]+", "-", text)[:64].strip("-._") or "new"


def _set_splits(found: datasets.Data, guesses: Guesses) -> None:
    """A tenth of the rows is held out, and half as many choose checkpoints where these are enough to tell a fall."""
    heldout, validation = min(500, max(1, found.rows // 10)), min(200, found.rows // 20)
    validation = validation if validation >= FEWEST else 0
    found.task |= {"heldout": heldout} | ({"validation": validation} if validation else {})
    if not validation:
        guesses.add("task", f"no validation prompts, and so no guard: {found.rows:,} rows are few")
    least = "at least " if found.rows >= datasets.MOST else ""
    guesses.add("task", f"heldout {heldout}, validation {validation}, of {least}{found.rows:,} rows")


def _tell_marker(config: dict[str, Any], policy: models.Model, found: datasets.Data, guesses: Guesses) -> None:
    """Make sure that completions say where their answer is, and that rewards look behind thoughts."""
    params = config["rewards"][0].get("params", {})
    looked_for = params.get("extract", "auto") in ("auto", CHOSEN)
    asked = sum(bool(ASKED.search(question)) for question in found.questions) >= len(found.questions) / 2
    if looked_for and not found.demonstrated and not asked:
        if policy.takes_system and not found.system:
            config["policy"]["system"] = SYSTEM
            guesses.add("policy", "system: neither the questions nor demonstrations say how to mark the answer")
        else:
            missing = "nothing tells the model to mark its answer (answer: X, #### X, \\boxed{X})"
            guesses.add("rewards", f"{missing}: where it does not do so by itself, no completion scores")
    if policy.opens_thought:
        config["rewards"][0].setdefault("params", {})["answer_after"] = "</think>"
        guesses.add("rewards", "answer_after </think>: the template opens the thought, the completion closes it")


def _chain(policy: models.Model, found: datasets.Data, rewards: Any, guesses: Guesses) -> list[dict[str, Any]]:
    """The stages. Those on rewards are left out where no reward fits and demonstrations can be learned from."""
    checked = {"eval_every": 20} if "validation" in found.task else {}
    guarded: dict[str, Any] = {**checked, **({"guard": {}} if checked else {})}
    trained = max(1, found.rows - found.task["heldout"] - found.task.get("validation", 0))
    chain: list[dict[str, Any]] = []
    if found.demonstrated:
        size = min(32, trained)
        steps = 300 if policy.new else min(100, max(10, 2 * trained // size))
        chain.append({"stage": "sft", "steps": steps, "prompts_per_step": size})
        chain[0] |= {"lr": 2.0e-3 if policy.new else 1.0e-5, **checked}
        guesses.add("stages", f"sft first, {steps} steps: there are demonstrations")
    else:
        guesses.add("stages", "no sft: there are no demonstrations to imitate")
    if rewards is None and chain:
        guesses.add("stages", "no dapo, gfpo and srpo: they learn from rewards, and none fits")
        return chain
    rate: dict[str, Any] = {} if policy.new else {"lr": 1.0e-6}
    size = min(16, trained)
    for name, steps in (("dapo", 80), ("gfpo", 120), ("srpo", 80)):
        chain.append({"stage": name, "steps": steps, "prompts_per_step": size, "group_size": 8, **rate})
    chain[-3] |= guarded
    if len(rewards or ()) > 1:
        chain[-2]["ranking"] = ["reward", rewards[1]["reward"]]
    chain[-1]["schedule"] = "linear"
    guesses.add("stages", "dapo finds what is rewarded, gfpo ranks the completions of a prompt, srpo comes to rest")
    if not policy.new:
        guesses.add("stages", "lr 1e-5 and 1e-6: usual for weights that are pretrained")
    return chain


def _text(proposal: Proposal, target: Path, origin: str) -> str:
    """The file: each section below the guesses in it."""
    name = shown_path(target)
    head = [
        f"Written by `{origin}` from the model's files and the data's first rows.",
        "Every guess stands above the section it is in, with its reason: change what is wrong.",
    ]
    parts = [_comment(head), "#\n", _comment([gradus_command(each, name) for each in ("check", "run")], "#   ")]
    for key, value in proposal.data.items():
        parts += [_comment(proposal.guesses.told.get(key, [])), yaml_text.dump({key: value})]
    return "".join(parts)


def _comment(lines: list[str], mark: str = "# ") -> str:
    wrapped = (
        textwrap.wrap(visible(line), 112, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in lines
    )
    return "".join(f"{mark}{line}\n" for part in wrapped for line in part)
