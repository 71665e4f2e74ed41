"""Worked solutions as ``equation_steps`` reads them: operations of equal precedence, and numbers without bound."""

from __future__ import annotations

import time

import pytest

from gradus.pipeline.rewards.equations import MAX_BITS, equation_share
from gradus.pipeline.tasks.arithmetic import solve


@pytest.mark.parametrize(
    ("expression", "value", "from_the_right"),
    [
        ("10-2-3", 5, 11),  # (10 - 2) - 3, and not 10 - (2 - 3)
        ("16/4/2", 2, 8),  # (16 / 4) / 2, and not 16 / (4 / 2)
        ("8-3+2", 7, 3),  # (8 - 3) + 2, and not 8 - (3 + 2)
        ("24/4*2", 12, 3),  # (24 / 4) * 2, and not 24 / (4 * 2)
        ("20-2*3-4", 10, 18),  # (20 - 6) - 4, and not 20 - (6 - 4)
        ("100-24/4/2-7", 90, 95),  # (100 - 3) - 7; and not 100 - (12 - 7)
        ("2-(10-4-3)-5", -6, 4),  # (2 - 3) - 5; and not 2 - (3 - 5)
    ],
)
def test_operations_of_equal_precedence_are_taken_from_the_left(
    expression: str, value: int, from_the_right: int
) -> None:
    assert equation_share(expression, f"{expression}={value};") == 1
    assert equation_share(expression, f"{expression}={from_the_right};") == 0
    assert solve(expression).endswith(f"answer: {value}"), "as the task's own solver has it"


def test_a_sign_binds_before_any_operation() -> None:
    # (-3) + 5 = 2 and not -(3 + 5) = -8; (-3) * 2 - 1 = -7
    assert equation_share("3 5", "-3+5=2;") == 1 and equation_share("3 5", "-3+5=-8;") == 0
    assert equation_share("3 2 1", "(-3)*2-1=-7;") == 1


def test_a_product_beyond_the_bound_is_false_however_true() -> None:
    # 2^512 has 513 bits: of 32-bit factors 2^32 it takes 16; 15 of them are 2^480 and within the bound
    factor = 2**32
    assert MAX_BITS == 512
    within = "*".join([str(factor)] * 15) + "/" + "/".join([str(factor)] * 14) + f"={factor};"
    beyond = "*".join([str(factor)] * 16) + "/" + "/".join([str(factor)] * 15) + f"={factor};"
    assert equation_share(str(factor), within) == 1
    assert equation_share(str(factor), beyond) == 0


def test_a_denominator_beyond_the_bound_is_false_too() -> None:
    factor = 2**32
    beyond = "1/" + "/".join([str(factor)] * 16) + "*" + "*".join([str(factor)] * 16) + "=1;"
    assert equation_share(f"1 {factor}", beyond) == 0


def test_powers_are_not_read_so_none_can_grow_huge() -> None:
    """10^10^10 would not fit into memory."""
    began = time.monotonic()
    for power in ("9**9**9**9=1;", "9^9^9^9=1;", "(9**9)**9**9**9=1;", "9 ** 9 ** 9 ** 9 = 1;"):
        assert equation_share("9 1", power) == 0
    assert time.monotonic() - began < 2
