"""The environment of workers: this process's without what looks like a secret, except what a reward declares.

It keeps passwords from code that does not need them, such as an expression that a model wrote and sympy evaluates. It
is no sandbox: a worker runs as the same user, who may read the same files and look at the same processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

SECRET_NAME = re.compile(
    r"^(MLFLOW|PREFECT|AWS)_|(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|KEY|CREDENTIAL)S?(_|$)|(^|_)AUTH(_|$)|_PWD$"
)
SECRET_VALUE = re.compile(r"://[^/@\s]+@")
"""A URL with a user or password in it."""


def withheld(declared: Iterable[str]) -> list[str]:
    """Variables of this process that workers do not get."""
    declared = {*declared}
    return [
        name
        for name, value in os.environ.items()
        if name not in declared and (SECRET_NAME.search(name.upper()) or SECRET_VALUE.search(value))
    ]


def worker_environment(declared: Iterable[str]) -> dict[str, str]:
    """What workers get; ``declared`` are the variables that rewards ask for by name."""
    left_out = {*withheld(declared)}
    return {name: value for name, value in os.environ.items() if name not in left_out}


def explained(message: str, declared: Iterable[str]) -> str:
    """A reward's error, with what to do where it speaks of a variable that was withheld from it."""
    for name in withheld(declared):
        if re.search(rf"\b{re.escape(name)}\b", message):
            return f"{message} ({name} is set, but withheld from rewards: name it in the reward's `env`)"
    return message
