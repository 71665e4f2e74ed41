"""The environment of workers: this process's without what looks like a secret, except what a reward declares.

It keeps passwords from code that does not need them, such as an expression that a model wrote and sympy evaluates. It
is no sandbox: a worker runs as the same user, who may read the same files and look at the same processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from gradus.pipeline.common.addresses import holds_secret

SECRET_NAME = re.compile(
    r"^(MLFLOW|PREFECT|AWS)_|(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|KEY|CREDENTIAL|COOKIE)S?(_|$)"
    r"|(^|_)AUTH(_|$)|_(PWD|PAT)$"
)
MESSAGE = 300
"""Characters of an error message that are reported."""
SHORTEST = 4
"""Characters of a value that is looked for in messages; shorter ones occur anywhere."""


def withheld(declared: Iterable[str]) -> list[str]:
    """Variables of this process that workers do not get."""
    declared = {*declared}
    return [name for name, value in os.environ.items() if name not in declared and _is_secret(name.upper(), value)]


def _is_secret(name: str, value: str) -> bool:
    """Whether a variable looks like a secret; the address of a proxy, which a reward needs for the network, never does.

    >>> [_is_secret(name, "x") for name in ("HF_TOKEN", "DB_PASSWORD", "AWS_PROFILE", "GITHUB_PAT", "PATH", "HF_HOME")]
    [True, True, True, True, False, False]
    >>> [_is_secret(name, "http://ann:x@host:1") for name in ("JUDGE_URL", "HTTPS_PROXY")]
    [True, False]
    """
    return bool(SECRET_NAME.search(name)) or (not name.endswith("_PROXY") and holds_secret(value))


def worker_environment(declared: Iterable[str]) -> dict[str, str]:
    """What workers get; ``declared`` are the variables that rewards ask for by name."""
    left_out = {*withheld(declared)}
    return {name: value for name, value in os.environ.items() if name not in left_out}


def explained(message: str, declared: Iterable[str]) -> str:
    """A reward's error, without the values of what it declared, since it goes into files; and with what to do where it
    speaks of a variable that was withheld from it."""
    for name in declared:
        if len(value := os.environ.get(name, "")) >= SHORTEST:
            message = message.replace(value, "...")
    message = message[:MESSAGE]
    for name in withheld(declared):
        if re.search(rf"\b{re.escape(name)}\b", message):
            return f"{message} ({name} is set, but withheld from rewards: name it in the reward's `env`)"
    return message
