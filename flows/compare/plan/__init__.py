"""What is compared: the arms, their budget, the folder of their runs, and the jobs in their order.

Gives: ``ComparisonPlan`` and ``make_plan`` (``comparison``), ``Arm`` (``arms``, ``sources``), ``Budget`` (``budget``),
``ComparisonFolder`` (``folder``), ``Job`` (``job``), ``ComparisonWork`` and ``Tuning`` (``schedule``).
Must not know: how a run is trained, the report, and Prefect.
"""
