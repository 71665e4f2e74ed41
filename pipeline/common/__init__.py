"""What every other package builds on, without any knowledge of reinforcement learning.

Gives: ``UserError`` and ``StageFailed``; atomic files and folders; locks; the user's own modules; addresses; YAML;
deferred interrupts; child processes, and what a process may use of the machine; observers; ranks.
Must not know: any word of the domain, such as stage, reward or policy.
"""
