"""Statistics on plain numbers, each one stated in full where it is computed.

Gives: intervals of shares, means and slopes (``share_bounds``, ``mean_bounds``, ``gain_bounds``); statistics of groups
of completions (``share``, ``pass_at_k``); comparisons of methods (``paired``, ``holm``, ``verdict``); tests of a drop
below the best (``paired_drop``, ``mean_drop``); what is read off a curve (``smooth``, ``crossing``).
Must not know: tensors, or any type of the project.
"""
