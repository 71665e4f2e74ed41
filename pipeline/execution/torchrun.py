"""torchrun that also reports to a launch how its processes died.

``python -m gradus.pipeline.execution.torchrun ADDRESS ARGUMENT ...``: the arguments after the launch's address are
torchrun's own. torchrun prints failures for people; the launch gets them as data.
"""

from __future__ import annotations

import json
import socket
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    """Run torchrun; the exit status is 1 where a process failed."""
    address, *arguments = sys.argv[1:]
    try:
        run.run(run.parse_args(arguments))
    except ChildFailedError as error:
        print(error, file=sys.stderr, flush=True)
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        deaths = [{"rank": rank, "exitcode": failure.exitcode} for rank, failure in failures]
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(address)
            line.sendall(json.dumps({"kind": "deaths", "deaths": deaths}).encode() + b"\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
