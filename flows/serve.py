"""The server process itself: ``python serve.py DESCRIPTOR``, on a listening socket that the launcher has bound.

Run by path, so that it needs nothing of gradus; its settings come from the environment (``flows.settings``).
"""

import socket
import sys


def main(descriptor: int) -> None:
    """Serve Prefect's API and pages until SIGTERM."""
    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(create_app(final=True), log_level="warning", timeout_keep_alive=75)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main(int(sys.argv[1]))
