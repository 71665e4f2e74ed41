"""``--tiny``: any configuration at toy size, so that all of its stages run in a minute or two on a CPU.

Gives: ``make_tiny``, from a checked configuration to one with a tiny model, made-up rows and small numbers.
Must not know: how runs are launched, and the words of the command line.
"""

from gradus.flows.tiny.cut import make_tiny

__all__ = ["make_tiny"]
