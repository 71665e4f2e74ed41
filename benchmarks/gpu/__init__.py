"""One command that says what works on a GPU machine, what does not, and how fast: `python -m benchmarks.gpu`.

    environment.py   the machine and its measured limits
    chains.py        it trains: the quickstart's chain, a kill and a resume, bit for bit or how far apart
    agreement.py     it is right: sampler, gradients and every stage, against the CPU
    speed.py         how fast: whole steps of a 0.6 B model, adapters on a 1.7 B model, TRL, the longest completion
    operations.py    where the time goes: operations, gaps, host synchronisations
    planning.py      what `gradus plan --hardware` would have said

`parts.py` runs them, each in a process of its own with a limit of time; `findings.py` is what they write.

It runs in a checkout, installed or not.
"""

import importlib.util
import os
import sys
from pathlib import Path

if importlib.util.find_spec("gradus") is None:
    _source = str(Path(__file__).resolve().parents[2] / "src")
    sys.path.insert(0, _source)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_source, os.environ.get("PYTHONPATH"))))
