"""A private PostgreSQL cluster in a temporary folder, from Debian's packages or whatever is on the path.

    python tests/helpers/postgres.py    # starts one, says where it is, and stops it at Ctrl-C

PostgreSQL refuses to run as root; then the cluster belongs to the packages' own user, or to nobody. It listens on the
loopback interface alone, asks for a password, and writes nothing outside its folder.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ADMIN = "gradus"


def binaries() -> Path | None:
    """Folder of the newest server's programs; None where PostgreSQL is not installed."""
    packaged = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    if packaged:
        return max(packaged, key=lambda path: float(path.parent.name))
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def missing() -> str:
    """Why no cluster can be started; empty where one can."""
    if binaries() is None:
        return "PostgreSQL is not installed (Debian, Ubuntu: apt-get install postgresql)"
    return "no user but root to run PostgreSQL as" if os.geteuid() == 0 and _owner() is None else ""


def _owner() -> pwd.struct_passwd | None:
    """Whom the cluster belongs to where this process is root's."""
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """A running cluster; its only account is ``ADMIN``."""

    folder: Path
    port: int
    password: str

    def url(self, database: str, scheme: str = "postgresql", password: str | None = None) -> str:
        return f"{scheme}://{ADMIN}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def run(self, program: str, *arguments: str) -> str:
        """What one of PostgreSQL's clients prints."""
        command = [str(_program(program)), "-h", "127.0.0.1", "-p", str(self.port), "-U", ADMIN, *arguments]
        environment = {**os.environ, "PGPASSWORD": self.password}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout


def _program(name: str) -> Path:
    folder = binaries()
    assert folder is not None
    return folder / name


def _call(program: str, *arguments: str) -> None:
    """As the cluster's owner; its output would keep a pipe open, so it goes to a file of the cluster's."""
    owner = _owner() if os.geteuid() == 0 else None
    options = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
    subprocess.run(
        [str(_program(program)), *arguments], check=True, timeout=60, stdout=subprocess.DEVNULL, cwd="/", **options
    )


@contextmanager
def cluster(*databases: str) -> Iterator[Cluster]:
    """A cluster with these databases, until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="gradus-postgres-"))
    made = Cluster(folder, free_port(), secrets.token_urlsafe(18))
    password_file, data = folder / "password", folder / "data"
    password_file.write_text(made.password)
    if os.geteuid() == 0 and (owner := _owner()):
        for path in (folder, password_file):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    try:
        _call("initdb", "-D", str(data), "-U", ADMIN, "-A", "scram-sha-256", "--pwfile", str(password_file), "-N")
        password_file.unlink()
        options = f"-p {made.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        _call("pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
        for database in databases:
            made.run("createdb", database)
        yield made
    finally:
        if (data / "postmaster.pid").exists():
            _call("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    import signal

    if reason := missing():
        raise SystemExit(reason)
    with cluster("prefect", "mlflow") as running, suppress(KeyboardInterrupt):
        print(f"{running.url('postgres')}\nCtrl-C stops it and removes {running.folder}", flush=True)
        signal.pause()
