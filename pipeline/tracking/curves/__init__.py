"""The pipeline's own curves: what its stages' journals say, over a step that goes on from stage to stage.

Gives: ``PipelineCurves`` to deliver them, ``waiting`` and ``pending`` to know what is left, ``draw`` for the figure.
Must not know: how a stage computes a metric. Training writes nothing for these curves; they are derived on delivery.
"""
