"""Check a GPU machine: does gradus train on it, is it right there, and how fast is it?

    python -m benchmarks.gpu [--minutes 8] [--out FOLDER] [--device cuda] [--parts speed ...] [--tiny]

It needs no network, and nothing but a checkout of gradus, PyTorch, and the packages that `benchmarks/gpu_wheels.sh`
collects; Prefect and MLflow are not used. FOLDER gets

    findings.jsonl   a line for each figure and verdict, as soon as it is known
    results.jsonl    a line for each part, as soon as it has ended: how, after how long, and with what findings
    report.md        the same as two tables, which are also printed at the end
    log.txt          everything that the parts printed

Ends with 1 where a part failed or a verdict is "not ok", with 2 where there is no such device. `--device cpu --tiny`
goes through the same steps in less than a minute.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.findings import Setup, exit_code, report
from benchmarks.gpu.parts import NAMES, preload, run_all


def main() -> int:
    """Run the parts, print the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="in all; what does not fit is left out")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of the results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", nargs="+", choices=NAMES, default=NAMES, metavar="PART", help=", ".join(NAMES))
    parser.add_argument("--tiny", action="store_true", help="models and runs of toy size")
    options = parser.parse_args()
    out: Path = options.out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as scratch:
        preload()
        setup = Setup(options.device, options.tiny, out, Path(scratch), 0.0)
        results = run_all(setup, ("environment", *options.parts), 60 * options.minutes)
    text = report(results)
    (out / "report.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"everything is in {out}")
    return exit_code(results)


if __name__ == "__main__":
    sys.exit(main())
