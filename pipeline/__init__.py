"""The shared core: one sampler, one reward library, one learner, one loop; no algorithm, no orchestrator."""

__version__ = "0.1.0"
