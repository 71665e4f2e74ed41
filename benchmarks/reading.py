"""The time and the memory of reading a large file of JSON lines to splits, and of `gradus check` on it.

    python benchmarks/reading.py [--rows 1000000] [--folder FOLDER]

The rows are made up: a question of 30 words, a worked answer, two columns of metadata, 270 bytes in all. Each reading
happens in a process of its own. Wall time depends on what else the machine does; the CPU seconds less so. The loop of
the calibration takes 0.2 to 0.3 s on an idle core of today: with more, everything else here takes longer, too.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOALS = {"check": (3.0, 1.0), "splits": (60.0, 1.0)}
"""What -> (seconds, gigabytes)."""
WORDS = "Ann has pears and finds more of them in the garden behind the old house while Ben counts how many there are"


def main() -> None:
    """Write the rows, read them, and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to write the rows (default: a temporary folder)")
    parser.add_argument("--measure", choices=GOALS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        write(folder / "rows.jsonl", arguments.rows)
        begin = time.process_time()
        for _ in range(10_000_000):
            pass
        print(f"calibration: {time.process_time() - begin:.2f} s of CPU")
        print(f"{arguments.rows:,} rows, {(folder / 'rows.jsonl').stat().st_size / 1e6:.0f} MB")
        for what, (seconds, gigabytes) in GOALS.items():
            command = [sys.executable, __file__, "--measure", what, "--folder", str(folder)]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(
                f"{what:7} {found['wall']:6.1f} s wall, {found['cpu']:5.1f} s of CPU (goal: {seconds:g} s), "
                f"{found['memory']:.2f} GB (goal: {gigabytes:g} GB)"
            )


def write(path: Path, rows: int) -> None:
    """Write made-up rows, the same in every call."""
    drawn, words = random.Random(0), WORDS.split()
    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            asked, worked = f"Number {n}: {' '.join(drawn.choices(words, k=30))}", f"{n} + {n} = {2 * n}\n#### {2 * n}"
            row = {"question": asked, "answer": worked, "level": n % 5, "source": "made"}
            file.write(json.dumps(row) + "\n")


def measure(what: str, folder: Path) -> None:
    """Do it in this process, and print the figures as JSON."""
    began = time.monotonic()
    from gradus.pipeline.config.task import FileTask
    from gradus.pipeline.tasks.task import check_task, make_task

    task = FileTask(source="file", path="rows.jsonl", heldout=500, validation=200)
    if what == "check":
        check_task(task, folder)
    else:
        with tempfile.TemporaryDirectory(dir=folder) as made:
            make_task(task, folder, Path(made) / "data")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    print(json.dumps({"wall": time.monotonic() - began, "cpu": usage.ru_utime + usage.ru_stime, "memory": memory}))


if __name__ == "__main__":
    main()
