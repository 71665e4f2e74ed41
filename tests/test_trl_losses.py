"""gradus's losses are TRL's, to 1e-5 of every parameter's gradient, where their settings say the same."""

from __future__ import annotations

import importlib.util

import pytest
from benchmarks.trl_losses.__main__ import compare, main
from benchmarks.trl_losses.batch import Policies, batch_of
from benchmarks.trl_losses.cases import NOT_THE_SAME, SAME, Case
from benchmarks.trl_losses.ours import of_gradus

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="the extra `bench` is not installed")
quiet = pytest.mark.filterwarnings("ignore")  # TRL's are about its own use of transformers, and about `rollout_func`


def settings(case: Case) -> str:
    return f"{case.stage} {case.written[1]}"


@needs_trl
@quiet
@pytest.mark.parametrize("case", SAME, ids=settings)
def test_the_two_have_the_same_gradient_and_loss(case: Case) -> None:
    found = compare(case)
    assert found.same, found


@needs_trl
@quiet
@pytest.mark.parametrize("case", NOT_THE_SAME, ids=settings)
def test_settings_that_only_look_alike_are_told_apart(case: Case) -> None:
    found = compare(case)
    assert not found.same, found


@needs_trl
@quiet
def test_the_exit_code_says_whether_the_tables_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SAME[:1], NOT_THE_SAME[:1]) == 0
    assert capsys.readouterr().err == ""
    assert main(NOT_THE_SAME[:1], SAME[:1]) == 1
    assert capsys.readouterr().err.count("in the wrong table") == 2


@pytest.mark.parametrize(
    "case", [SAME[0], *(case for case in SAME if case.stage != "dapo" or case.sampler == "engine")], ids=settings
)
def test_gradus_s_half_needs_no_trl(case: Case) -> None:
    policies = Policies()
    found = of_gradus(case, policies, batch_of(case, policies))
    assert found.gradient.keys() == dict(policies.now.model.named_parameters()).keys()
    assert all(gradient.isfinite().all() and gradient.any() for gradient in found.gradient.values())
