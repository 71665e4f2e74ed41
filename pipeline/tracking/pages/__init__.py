"""MLflow's pages that answer a question: which runs there are, how one learned, how several compare.

Gives: ``tracked_run``, ``page_of``, ``list_of_newest`` and ``save_view``; ``where_to_look``; ``server``, MLflow's own
server with its assistant kept shut.
Must not know: the commands that open a page.
"""
