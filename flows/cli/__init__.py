"""The command line: from words to calls of ``flows``, to what is printed, to an exit code.

Gives: ``app.main``, the command ``gradus``, and ``arm``, the process of one run of a comparison.
Must not know: how anything is done. What a notebook could want as well is a function outside this package.
"""
