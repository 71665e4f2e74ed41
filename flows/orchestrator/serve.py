"""The server process: ``python serve.py DESCRIPTOR`` serves a listening socket that the launcher has bound.

It is started by its path and imports nothing of gradus. Its settings come from the environment
(``gradus.flows.orchestrator.settings``).
"""

import contextlib
import os
import socket
import sys
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NAMES = {"127.0.0.1", "localhost"}
"""Names under which this server may be asked for: under another one, a browser is at a page of somebody else."""

LOGIN = """<script>(async () => {
  const asked = location.pathname + location.search, known = localStorage.getItem("prefect-password");
  const answer = await fetch("/api/admin/version", {headers: known ? {Authorization: `Basic ${known}`} : {}});
  if (answer.status !== 401 || asked.startsWith("/login")) return;
  localStorage.removeItem("prefect-password");
  location.replace(`/login?redirect=${encodeURIComponent(asked)}`);
})()</script>"""
"""Takes a browser that has no password, or an old one, from a run's page to the login and back. Of Prefect's two kinds
of pages the older, to which links to runs lead, say that authentication failed, and stay blank; the other asks."""


def main(descriptor: int) -> None:
    """Serve Prefect's API and pages until SIGTERM."""
    import uvicorn
    from prefect.server.api.server import create_app

    database = Path(os.environ["PREFECT_HOME"]) / "prefect.db"
    if not database.exists():
        with contextlib.suppress(Exception):  # Prefect then makes it itself
            make_database(database)
    app = OwnPages(create_app(final=True), int(os.environ["PREFECT_SERVER_API_PORT"]))
    with contextlib.suppress(OSError):
        add_login(Path(os.environ["PREFECT_SERVER_UI_STATIC_DIRECTORY"]) / "v1" / "index.html")
    config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=75)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


class OwnPages:
    """Refuses what a browser sends for a page of another server, before Prefect sees it.

    Such a page names itself in ``Origin``, or, where its name was made to point at this machine, in ``Host``. The port
    of ``Host`` may be another one, that of a tunnel from the user's machine.
    """

    def __init__(self, app: Any, port: int):
        self._app = app
        self._own = {f"http://{name}:{port}" for name in NAMES}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request by 403, or hand it on."""
        if scope["type"] == "lifespan" or self._allows([*scope["headers"]]):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it was accepted: a 403
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"This server answers its own pages only.\n"})

    def _allows(self, headers: list[tuple[bytes, bytes]]) -> bool:
        hosts = [value.decode("latin-1") for name, value in headers if name.lower() == b"host"]
        origins = [value.decode("latin-1") for name, value in headers if name.lower() == b"origin"]
        try:
            names = [urlsplit(f"//{host}").hostname for host in hosts]
        except ValueError:
            return False
        return len(hosts) == 1 and names[0] in NAMES and {*origins} <= self._own | {f"http://{hosts[0]}"}


def add_login(page: Path) -> None:
    """Add :data:`LOGIN` to the page that Prefect has put into gradus's own folder. Raises: OSError."""
    text = page.read_text(encoding="utf-8")
    if LOGIN not in text:
        page.write_text(text.replace("<head>", f"<head>{LOGIN}", 1), encoding="utf-8")


def make_database(path: Path) -> None:
    """Make Prefect's database by Prefect's own migrations, but in one thread.

    Prefect runs them through an asynchronous driver, which switches 34,000 times between two threads: 3 s more on an
    idle core, and one to three minutes when three processes share a core. The resulting tables are the same.
    """
    import sqlalchemy
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory
    from prefect.server.database import provide_database_interface
    from prefect.server.database.alembic_commands import alembic_config

    interface, settings = provide_database_interface(), alembic_config()
    script = ScriptDirectory.from_config(settings)
    script.version_locations = [str(interface.orm.versions_dir)]
    making = path.with_name(f"{path.name}.{os.getpid()}")
    engine = sqlalchemy.create_engine(f"sqlite:///{making}")
    environment = EnvironmentContext(
        settings, script, fn=lambda revision, _: script._upgrade_revs("head", revision), destination_rev="head"
    )
    try:
        with engine.connect() as connection, environment, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for pragma in ("synchronous", "foreign_keys"):
                connection.exec_driver_sql(f"PRAGMA {pragma}=OFF")
            connection.commit()
            environment.configure(
                connection=connection,
                target_metadata=interface.Base.metadata,
                include_schemas=True,
                render_as_batch=True,
                transaction_per_migration=True,
                template_args={"dialect": "sqlite"},
            )
            with environment.begin_transaction():
                environment.run_migrations()
        engine.dispose()
        making.replace(path)
    finally:
        making.unlink(missing_ok=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
