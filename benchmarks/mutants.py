"""Break the mathematics and the durability on purpose, one line at a time, and see whether a test notices.

    python -m benchmarks.mutants [--only learner] [--random 50 --seed 0] [--jobs 1] [--list]

Each mutant of :mod:`benchmarks.mutant_list` is a replacement of a text that stands once in a file, with the tests that
must fail once it is made. The checkout is copied to a temporary folder, one replacement at a time is made there, and
its tests run with that copy on PYTHONPATH. Before that, all of these tests must pass on the unchanged copy. With
--random, the mutants are drawn from all small changes of these files instead (:mod:`benchmarks.random_mutants`); some
of those change nothing that anybody could see.

Prints a table, noticed or survived, and their share. Exits with 1 where one survived, or could not be tried because its
text is not in the file once or pytest could not run its tests. Minutes; it is no part of the test suite.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.mutant_list import MUTANTS, Mutant  # noqa: E402
from benchmarks.random_mutants import drawn  # noqa: E402

TIMEOUT = 300
"""Seconds after which the tests of a mutant are ended: they hang, which is noticed."""
COPIED = ("pipeline", "stages", "flows", "src", "configs", "tests", "docs", "benchmarks", "pyproject.toml")
"""What the tests of mutants need of the checkout."""
NOTICED, SURVIVED, HANGS = "noticed", "SURVIVED", "noticed (hangs)"


def copied(folder: Path) -> Path:
    """A copy of the checkout in a new folder, with the links of src/gradus as they are."""
    folder.mkdir()
    for source in (ROOT / name for name in COPIED):
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / source.name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, folder)
    return folder


def pytest(folder: Path, tests: Iterable[str], timeout: float = TIMEOUT, quiet: bool = True) -> int | None:
    """The exit status of these tests in a copy of the checkout; None where they hang. Raises: SystemExit where the
    tests would import another checkout.

    No bytecode is written, because a changed file could have the size and the second of the one before it.
    """
    path = os.pathsep.join(map(str, (folder / "src", folder)))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    where = "import gradus; print(gradus.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=folder, env=environment, capture_output=True, text=True)
    if not Path(found.stdout.strip()).is_relative_to(folder):
        raise SystemExit(f"the tests would import {found.stdout.strip() or found.stderr}, not the copy in {folder}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        output = subprocess.DEVNULL if quiet else None
        ended = subprocess.run(command, cwd=folder, env=environment, stdout=output, timeout=timeout)
    except subprocess.TimeoutExpired:
        return None
    return ended.returncode


def tried(folder: Path, mutant: Mutant) -> str:
    """What became of one mutant. The copy is afterwards as it was before."""
    file = folder / mutant.file
    whole = file.read_text()
    if (count := whole.count(mutant.text)) != 1:
        return f"NOT TRIED: the text is {count} times in the file"
    file.write_text(whole.replace(mutant.text, mutant.replacement))
    try:
        status = pytest(folder, mutant.tests)
    finally:
        file.write_text(whole)
    named = {None: HANGS, 0: SURVIVED, 1: NOTICED}
    return named.get(status, f"NOT TRIED: pytest ended with {status}")


def shown(text: str, width: int = 58) -> str:
    """A text in one line of at most this width."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose file or tests contain this")
    parser.add_argument("--jobs", type=int, default=1, help="how many are tried at once, each in a copy of its own")
    parser.add_argument("--list", action="store_true", help="show the mutants and try none")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="draw so many mutants instead")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    options = parser.parse_args()
    known = drawn(ROOT, options.random, options.seed) if options.random else MUTANTS
    chosen = [each for each in known if options.only in " ".join((each.file, *each.tests))]
    if not chosen:
        parser.error(f"no mutant has {options.only!r} in its file or tests")
    if options.list:
        print("\n".join(f"{m.file:<44} {shown(m.text)}  ->  {shown(m.replacement)}" for m in chosen))
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gradus-mutants-") as temporary:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(options.jobs):
            copies.put(copied(Path(temporary, str(number))))
        everything = list(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
        first = copies.get()
        if (status := pytest(first, everything, 10 * TIMEOUT, quiet=False)) != 0:
            print(f"the tests must pass on the unchanged code first; pytest ended with {status}", file=sys.stderr)
            return 1
        copies.put(first)

        def outcome(mutant: Mutant) -> str:
            folder = copies.get()
            try:
                found = tried(folder, mutant)
            finally:
                copies.put(folder)
            print(f"{found:<16} {mutant.file:<44} {shown(mutant.text)}  ->  {shown(mutant.replacement)}", flush=True)
            return found

        with ThreadPoolExecutor(options.jobs) as threads:
            outcomes = list(threads.map(outcome, chosen))
    noticed = sum(found in (NOTICED, HANGS) for found in outcomes)
    minutes = (time.monotonic() - began) / 60
    print(f"\n{noticed} of {len(outcomes)} noticed ({noticed / len(outcomes):.1%}), in {minutes:.1f} min")
    return int(noticed < len(outcomes))


if __name__ == "__main__":
    sys.exit(main())
