"""Garbage collection during start-up, and children that end with their parent."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from gradus.pipeline.common.process import on_hang_up, process_start, started_up, starting_up


def test_no_search_while_starting_up_and_then_not_among_what_there_is() -> None:
    frozen = gc.get_freeze_count()
    try:
        with starting_up():
            assert not gc.isenabled()
            started_up()
            assert gc.isenabled() and gc.get_freeze_count() > frozen
            started_up()
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_an_error_on_the_way_ends_it() -> None:
    with pytest.raises(ValueError), starting_up():
        raise ValueError
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_outside_of_it_nothing_changes() -> None:
    started_up()
    assert gc.isenabled() and gc.get_freeze_count() == 0
    gc.disable()
    try:
        with starting_up():
            pass
        assert not gc.isenabled(), "who has turned it off wants it off"
    finally:
        gc.enable()


def pipe() -> tuple[int, int]:
    return os.pipe()


def connection() -> tuple[int, int]:
    here, there = socket.socketpair()
    return here.detach(), there.detach()


@pytest.mark.parametrize("pair", [pipe, connection])
def test_a_hang_up_is_noticed_and_what_was_written_stays(pair) -> None:
    ours, theirs = pair()
    try:
        ended = threading.Event()
        on_hang_up(ours, ended.set)
        os.write(theirs, b"request")
        assert not ended.wait(0.2), "a message is no hang-up"
        os.close(theirs)
        assert ended.wait(10)
        assert os.read(ours, 100) == b"request"
    finally:
        os.close(ours)


def test_a_process_has_one_start_and_a_later_one_has_another() -> None:
    ours = process_start(os.getpid())
    assert ours is not None and process_start(os.getpid()) == ours
    time.sleep(0.05)  # a start is measured in hundredths of a second
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_start(child.pid) not in (None, ours)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(child.pid) is None, "a zombie is no process"
    child.communicate()
