"""Mutants that nobody chose: random small changes of the core's code, as :mod:`benchmarks.mutants` tries them.

A change swaps an operator or a comparison, moves a number, drops a negation, or turns a truth value over, in one of the
files of the mathematics, the losses, the learner, the sampler, the scoring, the early stopping and the checkpoints.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.mutant_list import Mutant

MATHEMATICS = ("tests/stages", "tests/pipeline/training")
AREAS: dict[str, tuple[str, ...]] = {
    "pipeline/advantages.py": MATHEMATICS,
    "stages/dapo.py": MATHEMATICS,
    "stages/vapo.py": MATHEMATICS,
    "stages/gfpo.py": MATHEMATICS,
    "stages/srpo.py": MATHEMATICS,
    "stages/sft.py": MATHEMATICS,
    "pipeline/training/learner/losses.py": MATHEMATICS,
    "pipeline/training/learner/learner.py": MATHEMATICS,
    "pipeline/training/learner/groups.py": MATHEMATICS,
    "pipeline/training/learner/passes.py": MATHEMATICS,
    "pipeline/training/learner/critics.py": MATHEMATICS,
    "pipeline/training/learner/coefficients.py": MATHEMATICS,
    "pipeline/training/signals.py": MATHEMATICS,
    "pipeline/training/early_stopping.py": ("tests/pipeline/training",),
    "pipeline/rewards/scoring.py": ("tests/pipeline/rewards/test_scoring.py", "tests/stages", "tests/pipeline/rewards"),
    "pipeline/rewards/ranking.py": ("tests/pipeline/rewards", "tests/stages"),
    "pipeline/rollouts/builtin/draw.py": ("tests/pipeline/rollouts",),
    "pipeline/rollouts/builtin/decoder.py": ("tests/pipeline/rollouts",),
    "pipeline/runs/checkpoint.py": ("tests/pipeline/runs/test_durability.py", "tests/pipeline/execution"),
    "pipeline/tasks/prompt_order.py": ("tests/pipeline/tasks",),
}
"""File -> the tests of its area, the quickest to notice first."""
SWAPS: dict[type[ast.AST], str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Pow: "*",
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.And: "or", ast.Or: "and", ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "True": "False", "False": "True"}


def changes(source: str) -> Iterator[tuple[int, int, str]]:
    """Every change of a module: (start, end, what stands there instead), as offsets in its bytes."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def place(line: int | None, column: int | None) -> int:
        return starts[(line or 1) - 1] + (column or 0)

    for node in ast.walk(ast.parse(source)):
        begin = place(getattr(node, "lineno", None), getattr(node, "col_offset", None))
        end = place(getattr(node, "end_lineno", None), getattr(node, "end_col_offset", None))
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.Compare):
            operator, one, two = _first_operation(node)
            if operator in SWAPS:
                between = place(one.end_lineno, one.end_col_offset), place(two.lineno, two.col_offset)
                yield *between, f" {SWAPS[operator]} "
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
            yield begin, place(node.operand.lineno, node.operand.col_offset), ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield begin, end, NAMES[str(node.value)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, int):
            yield begin, end, str(node.value + 1)
        elif isinstance(node, ast.Constant) and isinstance(node.value, float):
            yield begin, end, str(node.value * 2 or 1.0)
        elif isinstance(node, ast.Name) and node.id in NAMES:
            yield begin, end, NAMES[node.id]


def _first_operation(node: ast.BinOp | ast.BoolOp | ast.Compare) -> tuple[type[ast.AST], ast.expr, ast.expr]:
    """The first operator of an expression, and what stands on its two sides."""
    if isinstance(node, ast.BinOp):
        return type(node.op), node.left, node.right
    if isinstance(node, ast.BoolOp):
        return type(node.op), node.values[0], node.values[1]
    return type(node.ops[0]), node.left, node.comparators[0]


def drawn(root: Path, count: int, seed: int) -> list[Mutant]:
    """So many mutants, each change of each file as likely as any other. What does not compile is left out."""
    found = []
    for name, tests in AREAS.items():
        raw = (root / name).read_bytes()
        for begin, end, instead in sorted(set(changes(raw.decode()))):
            line, stop = raw.rfind(b"\n", 0, begin) + 1, raw.find(b"\n", end)
            text = raw[line:stop].decode()
            replacement = (raw[line:begin] + instead.encode() + raw[end:stop]).decode()
            if any(mark in text for mark in ('"""', "#", "slots", "frozen")) or raw.count(text.encode()) != 1:
                continue
            try:
                compile(raw.decode().replace(text, replacement), name, "exec")
            except SyntaxError:
                continue
            found.append(Mutant(name, text, replacement, tests))
    return random.Random(seed).sample(found, min(count, len(found)))
