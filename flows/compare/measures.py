"""What an arm's run measured, as plain data: the form in which arms of other systems join a comparison, too.

arm, seed      whose it is
start          content hash of the checkpoint it started from, and its validation accuracy where known
curve          [[rollouts, accuracy on the validation prompts], ...] from the start on
entropy, length, reward   [[rollouts, nats a token | tokens a completion | mean reward], ...]
marks          [[rollouts, "dapo ends"], ...] where a stage handed over, with the event that ended it
rollouts, tokens, seconds   what was spent: sampled completions, their tokens, training time with its evaluations
accuracy       on the held-out prompts at the end
heldout        {prompt id: correct} behind it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import read_json
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import metric_history

CURVES = {"entropy": "policy/entropy", "length": "completion/length", "reward": "reward/mean"}
"""What is drawn besides accuracy: a measure -> the metric it comes from."""
MOST_POINTS = 40
"""Points that a curve of every step is thinned to, by means of neighbours."""
REQUIRED = ("arm", "seed", "start", "curve", "rollouts", "tokens", "seconds", "accuracy", "heldout")

Measures = dict[str, Any]


def measure(run: RunFolder, base: RunFolder, arm: str, seed: int) -> Measures:
    """What a complete arm measured. Reads records and journals only."""
    first = len(base.config.stages)
    results = [run.result(index) or {} for index in range(len(run.config.stages))][first:]
    measures: Measures = {"arm": arm, "seed": seed, "run": run.name, "marks": [], "stages": [], "curve": []}
    measures |= {name: [] for name in CURVES} | {"rollouts": 0, "tokens": 0, "seconds": 0.0}
    measures |= {"start": start_of(base), "accuracy": results[-1]["accuracy_after"]}
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
    """The checkpoint that all arms of a seed start from: content, held-out and validation accuracy, answers."""
    index = len(base.config.stages) - 1
    result, history = base.result(index) or {}, metric_history(base.stage_dir(index) / "journal.jsonl")
    step = int(Path(result["checkpoint"]).name.removeprefix("step-"))
    validation = history.get("validation/accuracy", {}).get(step)
    return {"content": result["content"], "accuracy": result["accuracy_after"], "validation": validation}


def _mark(result: Mapping[str, Any], last: bool) -> str:
    """Why a stage is over: its event, or simply its steps."""
    events = result.get("events") or ()
    why = f" ({events[-1]['rule']})" if events else ""
    return f"{result['name']} ends{why}" if last or why else f"{result['name']} hands over"


def points(values: Mapping[int, float], at: Mapping[int, float]) -> list[list[float]]:
    """step -> value as [rollouts, value], of the steps whose rollouts are known, in their order.

    >>> points({2: 0.5, 1: 0.4, 0: 0.3}, {1: 128, 2: 256})
    [[128, 0.4], [256, 0.5]]
    """
    return [[at[step], value] for step, value in sorted(values.items()) if step in at]


def thinned(curve: Sequence[Sequence[float]], most: int) -> list[list[float]]:
    """At most ``most`` points: means of neighbours, each at the mean of their places.

    >>> thinned([[1, 2.0], [2, 4.0], [3, 6.0], [4, 8.0]], 2)
    [[1.5, 3.0], [3.5, 7.0]]
    """
    size = -(-len(curve) // max(1, most))
    if size <= 1:
        return [list(point) for point in curve]
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [[sum(p[0] for p in part) / len(part), sum(p[1] for p in part) / len(part)] for part in parts]


def read_external(files: Sequence[Path]) -> list[Measures]:
    """Arms that another system has measured: files of one or a list of them, and folders of such. Raises: UserError."""
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
                    "these are no results of an arm", where=f"--external {file}", got=got, expected=expected
                )
            found.append({"marks": [], "stages": [], "run": None, **{name: [] for name in CURVES}, **each})
    return found


def check_external(external: Measures, ours: Sequence[Measures]) -> None:
    """The same start and held-out prompts as our arms of that seed, or it is no comparison. Raises: UserError."""
    same = [each for each in ours if each["seed"] == external["seed"]]
    what = f"the results of `{external['arm']}`, seed {external['seed']},"
    if not same:
        return
    if external["start"].get("content") != same[0]["start"]["content"]:
        raise UserError(f"{what} started from another checkpoint", where="--external", fix="make them anew")
    if external["heldout"].keys() != same[0]["heldout"].keys():
        raise UserError(f"{what} are on other held-out prompts", where="--external", fix="make them anew")
