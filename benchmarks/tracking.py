"""What tracking costs: the journal's line of a step, and the delivery of a whole run to MLflow's SQLite store.

    python benchmarks/tracking.py [--steps 10000]

The metrics of a step are those of a stage that samples. The journals of a run with four stages are written, which is
what training does, and then delivered, which is what the uploader does beside it, at its own pace. The delivery is done
in two parts, one after the other: the stages' own runs, and the pipeline's curves, which are derived from them.
Everything happens in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import Clock, machine, spread, table  # noqa: E402

from gradus.pipeline.tracking.journal import Journal  # noqa: E402

LABELS = ("01-sft", "02-dapo", "03-gfpo", "04-srpo")
PARTS = ("the stages' runs", "the pipeline's curves and figure")
NAMES = """advantage/max advantage/mean advantage/min advantage/nonzero_share advantage/std completion/length
completion/truncated_share group/uniform_share policy/entropy progress/rollouts progress/tokens reward/equation_steps
reward/exact_answer reward/invalid_share reward/mean reward/std reward_errors/equation_steps reward_errors/exact_answer
throughput/tokens_per_second time/reward time/reward_hidden time/sample time/stage time/step time/update
update/gradient_norm update/learning_rate update/loss update/rows update/skipped update/train_sample_mismatch"""


def write_run(folder: Path, steps: int) -> list[float]:
    """A run folder whose stages have done ``steps`` steps in all; returns the milliseconds of each step's line."""
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps({"tracking": {"uri": None, "experiment": "gradus"}}))
    with Journal(folder / "journal.jsonl") as whole:
        whole.start("benchmark")
        whole.end()
    spent, each, names = [], steps // len(LABELS), NAMES.split()
    for label in LABELS:
        stage = folder / "stages" / label
        with Journal(stage / "journal.jsonl") as journal:
            journal.start(label)
            for step in range(1, each + 1):
                values = {name: (step * (place + 1)) % 97 / 97 for place, name in enumerate(names)}
                began = time.perf_counter()
                journal.metrics(step, values)
                spent.append(1000 * (time.perf_counter() - began))
            journal.end()
        (stage / "result.json").write_text(json.dumps({"steps": each, "tokens": 1000 * each, "rollouts": 8 * each}))
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    from gradus.pipeline.tracking.uploader import Uploader

    with tempfile.TemporaryDirectory(prefix="gradus-benchmark-") as scratch:
        run = Path(scratch) / "run"
        lines = write_run(run, options.steps)
        uploader, clock = Uploader(run, f"sqlite:///{scratch}/mlflow.db", "gradus"), Clock()
        uploader._connected()  # MLflow is imported, and its tables are made
        curves = uploader._deliver_curves
        with clock(PARTS[0]):
            setattr(uploader, "_deliver_curves", lambda *_: None)  # noqa: B010
            uploader.sync()
        with clock(PARTS[1]):
            setattr(uploader, "_deliver_curves", curves)  # noqa: B010
            report = uploader.sync()
        assert (report.error, report.undelivered, report.rejected) == (None, 0, 0), report
        taken = clock.take()
    print(machine("mlflow", "sqlalchemy"), end="\n\n")
    tail = statistics.quantiles(lines, n=100)[98]
    what = f"a step's journal line, {len(NAMES.split())} metrics"
    print(f"{what}: {spread(lines, '.3f')} ms, 99 of 100 below {tail:.3f} ms\n")
    seconds = {part: (taken[f"{part} wall"], taken[part]) for part in PARTS}
    rows = [[part, f"{wall:.1f}", f"{cpu:.1f}"] for part, (wall, cpu) in seconds.items()]
    rows.append(["both", *(f"{sum(each):.1f}" for each in zip(*seconds.values(), strict=True))])
    print(table([f"delivery of {options.steps:,} steps", "wall seconds", "CPU seconds"], rows))


if __name__ == "__main__":
    main()
