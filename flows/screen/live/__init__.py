"""What is redrawn on a terminal while a run trains.

Gives: ``Bars`` with charts of the last steps, ``watch`` for ``gradus status --watch``.
Must not know: who trains the run.
"""
