"""What a person sees in a terminal, and the plain data behind it.

Gives: live progress (``progress``: ``watching``), what is redrawn (``live``), tables (``tables``, ``options``), the end
of a run (``summary``), the plan of a launch (``plan``), the state of runs (``status``), memory and time on given
hardware (``sizes``), errors and exit codes (``errors``: ``command``), and the formatting that they share (``text``).
Must not know: how a run is launched, and Prefect.
"""
