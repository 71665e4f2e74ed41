"""The time model of `gradus plan --hardware cpu:...` against measured steps, one thread.

    python -m benchmarks.pace [--runs 3] [--cases "small fixed" ...]

It uses the workloads of `benchmarks/workload.py` whose completions all run to the limit, and a model of 28 M
parameters. Seconds are CPU seconds. The rates are those of `gradus.pipeline.estimates.hardware`, measured on matrix
products alone.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from benchmarks.measuring import Worker, machine, spread, table
from benchmarks.sizing import LLAMA
from benchmarks.workload import CASES, Case, Gradus

from gradus.pipeline.estimates.hardware import parse_hardware
from gradus.pipeline.estimates.load import Load
from gradus.pipeline.estimates.model_size import from_options
from gradus.pipeline.estimates.step_time import pace

FIXED = {
    name.replace("variable", "fixed").replace("long", "long fixed"): replace(case, variable=False)
    for name, case in CASES.items()
    if not case.uniform_groups
}
FIXED["28 M fixed"] = Case("28 M fixed", LLAMA, variable=False)
PHASES = ("sample", "learn")


def worker(pipe: Any, case: Case, runs: int) -> None:
    """Whole steps of a case, the first one not counted; sends their seconds by phase."""
    torch.set_num_threads(1)
    system, found = Gradus(case), list[dict[str, float]]()
    for number in range(runs + 1):
        system.step(number)
        found.append(system.clock.take())
    pipe.send(found[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=FIXED, default=list(FIXED), metavar="CASE", help=", ".join(FIXED))
    parser.add_argument("--runs", type=int, default=3, help="steps of each case")
    options, hardware = parser.parse_args(), parse_hardware("cpu:24GiB")
    rows = []
    for name in options.cases:
        case = FIXED[name]
        one = Worker(worker, case, options.runs)
        steps = one.answer()
        one.process.join()
        load = Load(name, 1, case.prompts, case.group_size, case.prompt_tokens, case.new_tokens)
        guess = pace(from_options(case.model), load, hardware)
        predicted = {"sample": guess.of("sampling"), "learn": guess.of("learning")}
        cells = [name]
        for phase in PHASES:
            seconds = [step[phase] for step in steps]
            cells += [f"{predicted[phase]:.2f}", spread(seconds), spread([predicted[phase] / s for s in seconds])]
        rows.append(cells)
        print(*cells, sep="\t", flush=True)
    columns = [f"{phase}: {what}" for phase in PHASES for what in ("predicted s", "measured s", "ratio")]
    print(table(["case", *columns], rows))
    print(machine("torch", "transformers"))


if __name__ == "__main__":
    main()
