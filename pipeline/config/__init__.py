"""One YAML file, typed, checked and explained.

Gives: the options as pydantic models, ``load_config``, stages from outside, and the differences between configurations.
Must not know: torch, any algorithm, or how anything that it describes is done.
"""

from gradus.pipeline.config.pipeline import PipelineConfig, RewardConfig, SamplingConfig, StageConfig
from gradus.pipeline.config.policy import PolicyConfig

__all__ = ["PipelineConfig", "PolicyConfig", "RewardConfig", "SamplingConfig", "StageConfig"]
