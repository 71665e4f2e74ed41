"""The shared core: one sampler, one reward library, one learner, one loop. It knows no algorithm and no orchestrator."""

__version__ = "0.1.0"
