"""Orchestration: how a pipeline's stages are run, recorded and shown."""
