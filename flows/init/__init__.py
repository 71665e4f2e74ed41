"""A first configuration from a model and a data set: looked at, guessed, and each guess told with its reason.

Gives: ``propose``, ``write``.
Must not know: how runs are launched, and the words of the command line.
"""

from gradus.flows.init.propose import Proposal, propose, write

__all__ = ["Proposal", "propose", "write"]
