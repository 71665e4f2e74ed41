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


def main(descriptor: int) -> None:
    """Serve Prefect's API and pages until SIGTERM."""
    import uvicorn
    from prefect.server.api.server import create_app

    database = Path(os.environ["PREFECT_HOME"]) / "prefect.db"
    if not database.exists():
        with contextlib.suppress(Exception):  # Prefect then makes it itself
            make_database(database)
    config = uvicorn.Config(create_app(final=True), log_level="warning", timeout_keep_alive=75)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


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
