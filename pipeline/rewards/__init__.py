"""From completions to rewards: a library of verifiable rewards, the suite that scores batches, rankings of groups.

Gives: ``RewardSuite`` and ``Scoring``, ``check_rewards``, the ``reward`` decorator, ``order_PKK``, ``extract_answer``.
Must not know: the policy that wrote a completion, or what a stage does with its reward.

A reward of the library is one function, registered in ``library.py``; ``package.module:function`` names one of yours.
Importing this package takes milliseconds: what a reward needs is imported when it first scores.
"""

from gradus.pipeline.rewards import library as _library  # registers the rewards
from gradus.pipeline.rewards.extraction import extract_answer
from gradus.pipeline.rewards.ranking import check_keys, order_PKK
from gradus.pipeline.rewards.registry import names, reward
from gradus.pipeline.rewards.suite import RewardSuite, Scores, Scoring, check_rewards
from gradus.pipeline.rewards.user_functions import describe

__all__ = [
    "RewardSuite",
    "Scores",
    "Scoring",
    "check_keys",
    "check_rewards",
    "describe",
    "extract_answer",
    "names",
    "order_PKK",
    "reward",
]

del _library
