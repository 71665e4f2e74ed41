"""A reward for code: 1 where the program in a completion passes all of its prompt's tests.

It RUNS what the model wrote, in a process of its own with little memory and time, without the environment's variables
and in an empty folder. That is no sandbox: such a program can read files and reach the network. Train in a container
that holds nothing worth taking.

The reference answer is JSON in one of the forms of ``Skywork/Skywork-OR1-RL-Data``:

    {"inputs": ["1 2\\n"], "outputs": ["3\\n"]}                          what the program reads, and has to print
    {"inputs": [[1, 2]], "outputs": [3], "fn_name": "add"}             arguments of a function, and what it returns
    {"import_prefix": "...", "test_code": "...", "entry_point": "f"}   code that defines check(f)
    {"assert_case": ["assert f(1) == 2"]}                              statements
"""

from __future__ import annotations

import itertools
import json
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

EXAMPLE_ANSWER = '{"inputs": ["3 4\\n"], "outputs": ["7\\n"]}'
"""A reference answer, for the made-up rows of ``--tiny``."""
MEMORY = 2**30
"""Bytes of address space that a program may take."""
CALL = """
_function = getattr(globals().get("Solution", lambda: None)(), {name!r}, None) or {name}
_wanted, _got = {wanted!r}, _function(*{given!r})
assert _got == _wanted or [_got] == _wanted
"""


def passes(prompt: Any, completion: str, seconds: float = 2.0, most: int = 20) -> float:
    """Whether the last ``python`` block passes the first ``most`` tests; each may take ``seconds``.

    Raises: ValueError where the reference answer has none of the known forms, which is an error of its prompt.
    """
    found = re.findall(r"```python\n(.*?)```", completion.rpartition("</think>")[2], re.DOTALL)
    cases = itertools.islice(_cases(json.loads(prompt.answer), found[-1] if found else ""), most)
    results = [bool(found) and _run(*case, seconds) for case in cases]  # an unknown form is told in any case
    return float(bool(results) and all(results))


def _cases(tests: dict[str, Any], program: str) -> Iterator[tuple[str, str, str | None]]:
    """(code, what it reads, what it has to print or None) of each test."""
    if "fn_name" in tests:
        for given, wanted in zip(tests["inputs"], tests["outputs"], strict=True):
            yield program + CALL.format(name=tests["fn_name"], given=given, wanted=wanted), "", None
    elif "inputs" in tests:
        for given, wanted in zip(tests["inputs"], tests["outputs"], strict=True):
            yield program, given, wanted
    elif "test_code" in tests:
        check = f"{tests['test_code']}\ncheck({tests['entry_point']})"
        yield f"{tests.get('import_prefix', '')}\n{program}\n{check}", "", None
    elif "assert_case" in tests:
        yield from ((f"{program}\n{statement}", "", None) for statement in tests["assert_case"])
    else:
        raise ValueError(f"unknown form of tests: {', '.join(tests)}")


def _run(code: str, given: str, wanted: str | None, seconds: float) -> bool:
    """Whether the program ends in time and without an error, and prints what is wanted."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            ended = subprocess.run(
                [sys.executable, "-I", "-c", code],
                input=given, capture_output=True, text=True, timeout=seconds, cwd=folder, env={}, preexec_fn=_limit,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
    return ended.returncode == 0 and (wanted is None or ended.stdout.split() == wanted.split())


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
