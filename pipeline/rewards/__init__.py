"""The reward library: verifiable rewards, the suite that scores batches with them, and rankings of groups.

A reward of the library is one function registered in ``library.py``; ``package.module:function`` names one of yours.
Importing this package costs milliseconds: what a reward needs is imported when it first scores.
"""

from gradus.pipeline.rewards import library as _library  # registers the rewards
from gradus.pipeline.rewards.extraction import extract_answer
from gradus.pipeline.rewards.ranking import check_keys, order_PKK
from gradus.pipeline.rewards.registry import describe, names, reward
from gradus.pipeline.rewards.suite import RewardSuite, Scores, Scoring, check_rewards

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
