"""When the interpreter searches for garbage."""

from __future__ import annotations

import gc

import pytest

from gradus.pipeline.common.process import started_up, starting_up


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
