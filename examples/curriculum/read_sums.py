"""What a policy writes for sums of each length: does it take the question's numbers in their order, and add right?

python read_sums.py runs/sums
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.execution.inference import find_run, latest_checkpoint
from gradus.pipeline.policy.loading import load_policy
from gradus.pipeline.rollouts.builtin import sample
from gradus.pipeline.tasks.several.build import load_tasks
from gradus.stages import discover


def read(question: str, completion: str) -> tuple[bool, list[bool]]:
    """Whether all numbers of the question are taken in their order, and of each equation whether it is true.

    >>> read("Add: 3 - 5 + 9 =", "3-5=-2; -2+9=8; answer: 8"), read("Add: 3 - 5 + 9 =", "3+9=12; answer: 12")
    ((True, [True, False]), (False, [True]))
    """
    asked = re.findall(r"[+-]?\d+", "".join(question.rpartition(":")[2].split()))
    written = re.findall(r"(-?\d+)([+-]\d+)=(-?\d+)", completion)
    taken = [written[0][0], *(operand for _, operand, _ in written)] if written else []
    return taken == asked, [int(a) + int(b) == int(result) for a, b, result in written]


def main() -> None:
    """A line for each task of the run."""
    run = find_run(Path(sys.argv[1]), [stage.config for stage in discover().values()])
    policy = load_policy(latest_checkpoint(run), run.config.policy)
    heldout = run.heldout(len(run.config.stages) - 1) or {}
    for name, task in load_tasks(run.data_dir, run.config.named_tasks).items():
        prompts = task.prompts(task.heldout, range(len(task.heldout)))
        texts = sample(policy, prompts, 1, SamplingConfig(max_tokens=80), None).texts
        found = [read(prompt.question, text[0]) for prompt, text in zip(prompts, texts, strict=True)]
        true = [each for _, equations in found for each in equations]
        right, in_order = sum(heldout[f"{name}/{prompt.id}"] for prompt in prompts), sum(taken for taken, _ in found)
        print(f"{name}: {right} of {len(prompts)} answers right; {in_order} take all numbers in their order; ", end="")
        print(f"{sum(true)} of {len(true)} equations true")


if __name__ == "__main__":
    main()
