"""Interrupts that arrive while Python drops exceptions."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from datasets import Dataset
from pydantic import BaseModel, model_serializer

from gradus.pipeline.common.interruption import SIGNALS, Interrupted, handled, requested


class Thing:
    """An object that calls a function in its destructor."""

    def __init__(self, at_its_end: Callable[[], object]):
        self.at_its_end = at_its_end

    def __del__(self) -> None:
        self.at_its_end()


def in_destructor(strike: Callable[[], None]) -> None:
    Thing(strike)


def in_callback(strike: Callable[[], None]) -> None:
    thing = Thing(lambda: None)
    reference = weakref.ref(thing, lambda _: strike())
    del thing
    assert reference() is None


@pytest.mark.parametrize("kind", SIGNALS)
@pytest.mark.parametrize("when", [in_destructor, in_callback])
def test_a_signal_is_not_lost_where_python_drops_exceptions(
    when: Callable[[Callable[[], None]], None], kind: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before, hook = signal.getsignal(kind), sys.unraisablehook

    def strike() -> None:
        os.kill(os.getpid(), kind)
        time.sleep(0.05)  # the handler runs in here

    with pytest.raises(Interrupted) as caught, handled():
        when(strike)
        time.sleep(20)
    assert caught.value.code == 128 + kind
    assert signal.getsignal(kind) is before and sys.unraisablehook is hook
    assert "Exception ignored" not in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_dropped_exceptions_go_where_they_went() -> None:
    def fail() -> None:
        raise ValueError("dropped")

    seen = []
    others, sys.unraisablehook = sys.unraisablehook, lambda unraisable: seen.append(unraisable.exc_value)
    try:
        with handled():
            in_destructor(fail)
    finally:
        sys.unraisablehook = others
    assert [str(error) for error in seen] == ["dropped"]


class Written(BaseModel):
    """What a library in another language serialises: an exception in here becomes one of its own."""

    text: str = ""

    @model_serializer
    def write(self) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)  # the handler runs in here
        return self.text


def test_a_signal_is_not_taken_for_an_error_of_the_library_that_it_struck() -> None:
    with pytest.raises(Interrupted) as caught, handled(), handled():
        Written().model_dump()
    assert caught.value.code == 143
    with pytest.raises(ValueError, match="of its own"), handled():
        raise ValueError("an error of its own")


class Struck:
    """An object whose first pickling is struck by a signal."""

    struck = False

    def __reduce__(self) -> tuple[type, tuple[()]]:
        if not Struck.struck:
            Struck.struck = True
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)  # the handler runs in here
        return Struck, ()


def test_a_signal_that_a_library_has_caught_is_not_lost() -> None:
    """datasets hashes what a transformation is given, and catches everything that is raised meanwhile."""
    rows, seen = Dataset.from_dict({"n": [1, 2]}), list[bool]()
    with pytest.raises(Interrupted) as caught, handled():
        seen.append(requested())
        rows.map(lambda row, given: row, fn_kwargs={"given": Struck()})
        seen.append(requested())
    assert seen == [False, True], "a stage would be left after the step in hand"
    assert caught.value.code == 129
    with handled():
        assert not requested(), "the next work is not concerned"


def test_a_lock_that_a_signal_strikes_is_not_left_taken() -> None:
    lock, chance = threading.Condition(), random.Random(0)

    def strike() -> None:
        time.sleep(chance.uniform(0, 0.002))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    for _ in range(60):  # nearly half of them left it taken
        with pytest.raises(Interrupted), handled():
            threading.Thread(target=strike).start()
            while True:
                with lock:
                    pass
        with ThreadPoolExecutor(1) as other:
            assert other.submit(lock.acquire, timeout=5).result()
            other.submit(lock.release).result()


HANGS = """
import os, signal, time
from gradus.pipeline.common.interruption import end_within
from gradus.pipeline.common.interruption import deferred, handled, leave_if_requested
end_within(0.3)
with handled(lambda text: print(text, flush=True)):
    try:
        with {block}:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(1)
            print("the step is done", flush=True)
        leave_if_requested()
    finally:
        while True:
            time.sleep(1)
"""


@pytest.mark.parametrize("block, said", [("open(os.devnull)", ""), ("deferred()", "the step is done")])
def test_a_process_that_hangs_after_a_signal_is_ended_and_no_step_is_cut_short(block: str, said: str) -> None:
    program = HANGS.replace("{block}", block)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 129
    assert said in ended.stdout
    told = re.fullmatch(r"the process did not end within 0 s .* is in (\S+)\n", ended.stderr)
    assert told is not None, ended.stderr
    where = Path(told[1])
    assert re.search(r"line \d+ in <module>", where.read_text())
    where.unlink()
