"""The work of one stage, apart from how it trains: what it leaves behind, and the merge, which takes no steps.

Gives: ``StageWork``, ``start_journal``, ``conclude``, ``merge``. Must not know: algorithms, and who calls.
"""
