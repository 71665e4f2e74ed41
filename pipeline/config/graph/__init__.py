"""The stages as a graph: what each one starts from and depends on, and the stage that is made out of others.

Gives: ``parent``, ``inputs`` and what follows from them, ``check_graph``, ``MergeConfig``.
Must not know: how a stage is done, and where its results lie.
"""
