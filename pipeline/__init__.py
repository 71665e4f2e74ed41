"""The shared core: one sampler, one reward library, one learner, one loop; no algorithm, no orchestrator."""
