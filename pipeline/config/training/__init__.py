"""Options of how a stage trains, besides its algorithm's own.

Gives: ``objective``, penalties and masks of the objective, and the choice of other policies.
Must not know: how any of it is computed.
"""
