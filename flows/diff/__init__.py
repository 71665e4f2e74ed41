"""What differs between two policies: the options that made them, their accuracies, and the prompts that one answers.

Gives: ``find_state``, ``diff``, ``print_diff``, ``as_page``. Must not know: how anything is trained; the words of the
command line.
"""
