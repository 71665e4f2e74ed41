"""Both systems in every case, and the two tables."""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import dataclass

import benchmarks.trl_losses as package
import torch
from benchmarks.measuring import machine, table
from benchmarks.trl_losses.batch import Policies, batch_of
from benchmarks.trl_losses.cases import NOT_THE_SAME, SAME, Case
from benchmarks.trl_losses.ours import of_gradus
from benchmarks.trl_losses.theirs import of_trl

BOUND = 1e-5
"""Largest relative difference of a gradient or a loss."""


@dataclass(frozen=True)
class Compared:
    """How far the two systems lie apart in one case, as shares of what TRL has."""

    case: Case
    gradient: float
    loss: float
    bounded: float | None

    @property
    def same(self) -> bool:
        """Whether both differences are within the bound."""
        return max(self.gradient, self.loss) <= BOUND

    def row(self) -> list[str]:
        """What the table says of it."""
        bounded = "" if self.bounded is None else f"{self.bounded:.0%}"
        apart = [f"{self.gradient:.1e}", f"{self.loss:.1e}"]
        return [self.case.stage, *self.case.written, self.case.note, bounded, *apart]


def compare(case: Case) -> Compared:
    """Both systems on the same batch."""
    policies = Policies()
    rollouts = batch_of(case, policies)
    theirs, ours = of_trl(case, policies, rollouts), of_gradus(case, policies, rollouts)
    assert ours.gradient.keys() == theirs.gradient.keys(), "the two systems train different parameters"
    pairs = [(ours.gradient[name], wanted) for name, wanted in theirs.gradient.items()]
    gradient = max(float((found - wanted).norm() / wanted.norm()) for found, wanted in pairs)
    bounded = theirs.bounded if ours.bounded is None else ours.bounded
    assert bounded is None or 0 < bounded < 1, f"{case}: a bound that holds nothing or everything shows nothing"
    return Compared(case, gradient, abs(ours.loss - theirs.loss) / abs(theirs.loss), bounded)


def main(same: list[Case] = SAME, different: list[Case] = NOT_THE_SAME) -> int:
    """Compare, print, and return the exit code."""
    header = ["stage", "gradus", "TRL", "and", "bounded", "gradient", "loss"]
    wrong: list[Case] = []
    for title, cases, wanted in (("The same:", same, True), ("Not the same:", different, False)):
        found = [compare(case) for case in cases]
        print(f"{title}\n\n{table(header, [each.row() for each in found])}\n")
        wrong += [each.case for each in found if each.same is not wanted]
    print(machine("torch", "transformers", "trl"))
    for case in wrong:
        print(f"in the wrong table: {case.stage}, {case.written}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    from datasets import disable_progress_bars

    disable_progress_bars()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # TRL's are about its own use of transformers, and about `rollout_func`
    sys.exit(main())
