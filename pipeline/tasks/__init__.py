"""Tasks: prompts, answers and demonstrations, which are read, split, hashed and put into an order.

Gives: ``check_task``, ``build_task`` and ``load_task``; ``TaskData``, the splits of a task; ``PromptStream`` and
``Schedule``, which decide which prompts come next; ``PromptMemory``, what was measured of each; ``data_ahead``, which
makes the data in another process.
Must not know: policies, rewards, or training.
"""
