"""The measures of an arm's run as plain data. Results of other systems join a comparison in the same form.

arm, seed      the label of the arm and the seed
start          content hash of the checkpoint it started from, and its validation accuracy if known
curve          [[rollouts, accuracy on the validation prompts], ...] from the start
entropy, length, reward   [[rollouts, nats per token | tokens per completion | mean reward], ...]
marks          [[rollouts, "dapo ends"], ...] at the end of each stage, with the event that ended it
rollouts, tokens, seconds   what was spent: sampled completions, their tokens, training time with evaluations
accuracy       on the held-out prompts at the end, of several tasks on those of all
heldout        {prompt id: correct}, from which that accuracy follows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import read_json
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.task_accuracies import pooled
from gradus.pipeline.tracking.journal import metric_history

CURVES = {"entropy": "policy/entropy", "length": "completion/length", "reward": "reward/mean"}
"""Curves besides accuracy: a measure -> the metric that it is read from."""
MOST_POINTS = 40
"""How many points remain of a curve with a point for every step; neighbours are averaged."""
REQUIRED = ("arm", "seed", "start", "curve", "rollouts", "tokens", "seconds", "accuracy", "heldout")
"""What the results of another system must have."""

Measures = dict[str, Any]


def measure(run: RunFolder, base: RunFolder, arm: str, seed: int) -> Measures:
    """The measures of an arm's complete run, read from its records and journals."""
    first = len(base.config.stages)
    results = [run.result(index) or {} for index in range(len(run.config.stages))][first:]
    measures: Measures = {"arm": arm, "seed": seed, "run": run.name, "marks": [], "stages": [], "curve": []}
    measures |= {name: [] for name in CURVES} | {"rollouts": 0, "tokens": 0, "seconds": 0.0}
    measures |= {"start": start_of(base), "accuracy": final_accuracy(results[-1])}
    if measures["accuracy"] is None or measures["start"]["accuracy"] is None:
        what = "no held-out completion could be scored, so there is nothing to compare"
        raise UserError(what, where=run.name, fix="correct the reward, and compare again under another name")
    if measures["start"]["validation"] is not None:
        measures["curve"].append([0, measures["start"]["validation"]])
    for index, result in enumerate(results, first):
        history, spent = metric_history(run.stage_dir(index) / "journal.jsonl"), measures["rollouts"]
        at = {step: spent + int(value) for step, value in history.get("progress/rollouts", {}).items()}
        measures["curve"] += points(history.get("validation/accuracy", {}), at)
        for name, metric in CURVES.items():
            measures[name] += thinned(points(history.get(metric, {}), at), MOST_POINTS // len(results))
        for key in ("rollouts", "tokens", "seconds"):
            measures[key] += result[key]
        measures["marks"].append([measures["rollouts"], _mark(result, index + 1 == len(run.config.stages))])
        kept = ("name", "algorithm", "variant", "steps", "rollouts", "tokens", "seconds", "accuracy_after", "events")
        options = run.config.stages[index].model_dump(mode="json", include={"lr", "schedule"})
        measures["stages"].append({key: result[key] for key in kept if key in result} | options)
    measures["heldout"] = run.heldout(len(run.config.stages) - 1) or {}
    return measures


def start_of(base: RunFolder) -> dict[str, Any]:
    """The checkpoint that all arms of a seed start from: content hash, held-out and validation accuracy."""
    index = len(base.config.stages) - 1
    result, history = base.result(index) or {}, metric_history(base.stage_dir(index) / "journal.jsonl")
    step = int(Path(result["checkpoint"]).name.removeprefix("step-"))
    validation = history.get("validation/accuracy", {}).get(step)
    return {"content": result["content"], "accuracy": final_accuracy(result), "validation": validation}


def final_accuracy(result: Mapping[str, Any]) -> float | None:
    """The held-out accuracy of a run from its last stage's record: of several tasks on all, whatever it trained on.

    >>> easy, hard = {"accuracy": 0.5, "prompts": 20}, {"accuracy": 0.2, "prompts": 10}
    >>> final_accuracy({"accuracy_after": 0.5, "tasks": {"easy": easy, "hard": hard}})
    0.4
    """
    return pooled(result["tasks"])["accuracy"] if result.get("tasks") else result["accuracy_after"]


def _mark(result: Mapping[str, Any], last: bool) -> str:
    """How a stage ended, with the rule that ended it, if one did."""
    events = result.get("events") or ()
    why = f" ({events[-1]['rule']})" if events else ""
    return f"{result['name']} ends{why}" if last or why else f"{result['name']} hands over"


def points(values: Mapping[int, float], at: Mapping[int, float]) -> list[list[float]]:
    """step -> value as [rollouts, value], for the steps whose rollouts are known, in their order.

    >>> points({2: 0.5, 1: 0.4, 0: 0.3}, {1: 128, 2: 256})
    [[128, 0.4], [256, 0.5]]
    """
    return [[at[step], value] for step, value in sorted(values.items()) if step in at]


def thinned(curve: Sequence[Sequence[float]], most: int) -> list[list[float]]:
    """At most ``most`` points: means of neighbours, each at the mean of their positions.

    >>> thinned([[1, 2.0], [2, 4.0], [3, 6.0], [4, 8.0]], 2)
    [[1.5, 3.0], [3.5, 7.0]]
    """
    size = -(-len(curve) // max(1, most))
    if size <= 1:
        return [list(point) for point in curve]
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [[sum(p[0] for p in part) / len(part), sum(p[1] for p in part) / len(part)] for part in parts]


def read_external(files: Sequence[Path]) -> list[Measures]:
    """Results of other systems: files with one arm or a list of arms, or folders of such files. Raises: UserError."""
    found: list[Measures] = []
    for file in (each for path in files for each in (sorted(path.glob("*.json")) if path.is_dir() else [path])):
        try:
            content = read_json(file)
        except (OSError, ValueError) as error:
            raise UserError("these results cannot be read", where=f"--external {file}", got=str(error)) from None
        if content is None:
            raise UserError("there is no such file of results", where=f"--external {file}")
        for each in content if isinstance(content, list) else [content]:
            missing = [key for key in REQUIRED if not isinstance(each, dict) or key not in each]
            if missing:
                expected = f"an object with {', '.join(REQUIRED)}"
                got = f"without {', '.join(missing)}"
                raise UserError(
                    "these are not results of an arm", where=f"--external {file}", got=got, expected=expected
                )
            found.append({"marks": [], "stages": [], "run": None, **{name: [] for name in CURVES}, **each})
    return found


def check_external(external: Measures, ours: Sequence[Measures]) -> None:
    """Check that results of another system have the same start and held-out prompts as our arms. Raises: UserError."""
    same = [each for each in ours if each["seed"] == external["seed"]]
    what = f"the results of `{external['arm']}`, seed {external['seed']},"
    if not same:
        return
    if external["start"].get("content") != same[0]["start"]["content"]:
        raise UserError(f"{what} started from another checkpoint", where="--external", fix="make them again")
    if external["heldout"].keys() != same[0]["heldout"].keys():
        raise UserError(f"{what} are on other held-out prompts", where="--external", fix="make them again")
