"""Groups of completions that a stage sampled while it trained, for a person to read.

Gives: ``RolloutRecord``, which keeps some groups every so many steps (``record``), and ``sampled_groups``, which reads
them again (``read``).
Must not know: how groups are sampled, scored and trained on, and how they are shown.
"""
