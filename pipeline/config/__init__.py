"""One YAML file, typed, checked and explained.

Gives: the options as pydantic models, ``load_config``, stages from outside, and the differences between configurations.
Must not know: torch, any algorithm, or how anything that it describes is done.
"""

from gradus.pipeline.config.pipeline import PipelineConfig, SamplingConfig, StageConfig
from gradus.pipeline.config.policy import PolicyConfig
from gradus.pipeline.config.rewards import RewardConfig

__all__ = ["PipelineConfig", "PolicyConfig", "RewardConfig", "SamplingConfig", "StageConfig"]
