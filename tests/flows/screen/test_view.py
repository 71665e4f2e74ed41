"""Output whose reader has gone, is slow, or cannot take a character: it is dropped, and the writer goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from gone_outputs import closed_pipe, closed_terminal, full_disk
from paths import SOURCES

from gradus.flows.screen import view


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Make a descriptor this process's standard output and standard error, as a shell does."""
    opened = []

    def use(descriptor: int, encoding: str = "utf-8") -> int:
        for name in ("stdout", "stderr"):
            stream = os.fdopen(os.dup(descriptor), "w", encoding=encoding)
            opened.append(stream)
            monkeypatch.setattr(sys, name, stream)
            monkeypatch.setattr(sys, f"__{name}__", stream)
        return descriptor

    yield use
    monkeypatch.undo()
    for stream in opened:
        with contextlib.suppress(OSError):
            stream.close()


@pytest.mark.parametrize("gone", [closed_pipe, closed_terminal, full_disk])
def test_no_error_of_the_terminal_arrives(gone: Callable[[], int], output: Callable[..., int]) -> None:
    descriptor = output(gone())
    with pytest.raises(OSError):
        os.write(descriptor, b"lost")
    with view.only_a_view():
        for stream in (sys.stdout, sys.stderr):
            print("lost as well", file=stream, flush=True)
            stream.buffer.write(b"bytes, too")
    assert sys.stdout is sys.__stdout__
    os.close(descriptor)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stops_reading_holds_nothing_up(
    blocking: bool, output: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "PATIENCE_SECONDS", 0.2)
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    output(writer)
    line, began = "x" * 4999, time.monotonic()
    with view.only_a_view():
        for _ in range(1000):  # five megabytes, of which a pipe takes 64 kB
            print(line)
        assert time.monotonic() - began < 20, "only the first line waits"
        assert 30_000 < len(os.read(reader, 1 << 20)) < 1 << 20
        print("the reader is back")
        assert os.read(reader, 1 << 20) == b"\nthe reader is back\n"
    os.close(reader)
    os.close(writer)


def test_long_output_arrives_whole_where_it_is_read(output: Callable[..., int]) -> None:
    code = "import sys; data = sys.stdin.buffer.read(); print(len(data), data.count(b'\\n'), data[:2], data[-3:])"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    output(child.stdin.fileno())
    with view.only_a_view():
        print("ab" + "\n" * 300_000 + "yz")
    sys.stdout.close(), sys.stderr.close(), child.stdin.close()
    child.stdin = None
    assert child.communicate(timeout=60)[0].split(maxsplit=2) == [b"300005", b"300001", b"b'ab' b'yz\\n'\n"]


def test_characters_that_the_encoding_lacks_are_written_as_escapes(output: Callable[..., int]) -> None:
    reader, writer = os.pipe()
    output(writer, "ascii")
    with view.only_a_view():
        print("a → b")
    assert os.read(reader, 100) == b"a \\u2192 b\n"
    os.close(reader)
    os.close(writer)


def test_a_signal_handler_prints_in_the_middle_of_a_line(output: Callable[..., int]) -> None:
    reader, writer = os.pipe()
    output(writer)
    kept = signal.signal(signal.SIGALRM, lambda *_: print("handler"))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with view.only_a_view():
            os.set_blocking(reader, False)
            print("x" * 200_000)  # more than the pipe holds: the handler runs in the middle of it
            read = os.read(reader, 1 << 20)
            print("after")
            read += os.read(reader, 1 << 20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)
    assert read.startswith(b"xxx") and read.endswith(b"after\n")
    os.close(reader)
    os.close(writer)


def test_streams_that_something_else_put_in_place_stay(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = sys.stdout
    with view.only_a_view():
        assert sys.stdout is theirs
        print("to the notebook")
    assert capsys.readouterr().out == "to the notebook\n"


def test_a_closed_standard_output_is_not_the_next_file(tmp_path: os.PathLike[str]) -> None:
    code = (
        "import os, sys; from gradus.flows.screen import view; view.open_standard_streams();"
        "file = open('weights', 'wb'); os.write(1, b'a word of a library'); os.write(2, b'another'); print('said');"
        "sys.exit(file.fileno() < 3)"
    )
    command = ["bash", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
    ended = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SOURCES)}, timeout=60)
    assert ended.returncode == 0
    assert os.path.getsize(os.path.join(tmp_path, "weights")) == 0
