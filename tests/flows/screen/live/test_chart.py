"""Charts of the last steps and bars: right values in few characters, within any terminal's width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gradus.flows.screen.live.bars import Bars
from gradus.flows.screen.live.chart import MOST_POINTS, WIDEST, Curve, bar_lines
from gradus.flows.screen.progress import LiveObserver, PlainObserver, watching
from gradus.flows.screen.text import Screen

SPEED = {"throughput/tokens_per_second": 12345.0}


def curve(values: list[float]) -> Curve:
    made = Curve("reward")
    for step, value in enumerate(values, 1):
        made.add(step, value)
    return made


def test_a_chart_of_two_lines_by_hand() -> None:
    # 16 eighths: 1 + round((value - 0) / 1.5 * 15), so 0 -> 1, 0.7 -> 8, 0.8 -> 9, 1.5 -> 16.
    assert curve([0.0, 0.7, 0.8, 1.5]).lines(80, 2) == [
        "reward 1.500   ▁█",
        "       0.000 ▁███",
        "             steps 1 to 4",
    ]
    assert curve([0.0, 0.7, 0.8, 1.5]).lines(80, 1) == ["reward ▁▄▅█  0.000 to 1.500, steps 1 to 4"]
    assert curve([1.5, 0.75, 0.0]).lines(80, 1, ascii_only=True) == ["reward |:.  0.000 to 1.500, steps 1 to 3"]


def test_more_steps_than_columns_are_averaged_and_the_scale_is_that_of_the_means() -> None:
    # 80 - len("reward   to , steps 1 to 120") - 2 * len("0.000") = 42 columns; from 84 values two go into each.
    assert curve([0.0, 1.0] * 42).lines(79, 1) == ["reward " + "▁" * 42 + "  0.500 to 0.500, steps 1 to 84"]


def test_a_resume_repeats_steps_and_old_ones_are_forgotten() -> None:
    made = curve([0.1, 0.2, 0.3, 0.4])
    made.add(3, 0.5)
    assert made.points == ((1, 0.1), (2, 0.2), (3, 0.5))
    long = curve([float(step) for step in range(1, 10_001)])
    assert len(long.points) == MOST_POINTS and long.points[-1] == (10_000, 10_000.0)


def test_equal_values_and_too_few_and_too_narrow() -> None:
    assert bar_lines([2.0, 2.0], 1) == ["▁▁"]
    assert curve([1.0]).lines(80, 1) == [] == curve([1.0, 2.0]).lines(30, 1) == curve([1.0, 2.0]).lines(20, 3)


def drawn(width: int, height: int = 30, stages: int = 1, cut: float = 0.0, encoding: str = "utf-8") -> list[str]:
    """The lines of the bars of stages that have taken 80 of 120 steps, with this share of completions cut."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, force_terminal=True, width=width, height=height, color_system=None)
    bars = Bars(console)
    for stage in range(stages):
        bars.stage_started(f"stage-{stage}", stage, stages, 120, 0)
        for step in range(1, 81):
            metrics = {"reward/mean": step / 100, "update/loss": 2.0, "completion/truncated_share": cut, **SPEED}
            bars.step_done(f"stage-{stage}", step, 120, metrics)
    console.print(bars.progress.get_renderable())
    file.flush()
    return file.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("width", [30, 40, 59, 60, 79, 80, 100, 200])
def test_every_width_stays_readable(width: int, stages: int) -> None:
    lines = drawn(width, stages=stages)
    assert all(len(line) <= min(width, 100) for line in lines), lines
    for stage in range(stages):
        (bar,) = (line for line in lines if f"stage-{stage}" in line)
        assert f"{stage + 1}/{stages} stage-{stage}" in bar and "80/120" in bar
        assert (
            ("━" in bar) == (width >= 40)
            and ("reward 0.800" in bar) == (width >= 59)
            and ("tokens/s" in bar) == (width >= 79)
        )
    charts = [line for line in lines if "█" in line]
    assert len(charts) == (0 if width < 60 else 3 if stages == 1 else 2)
    assert not any("loss" in line for line in lines), "the reward is what is to grow"
    if width >= 80:
        assert max(line.count("█") for line in charts) <= WIDEST


def test_what_was_cut_is_more_important_than_the_speed() -> None:
    assert "95% cut at max_tokens" in drawn(80, cut=0.95)[0] and "tokens/s" not in drawn(80, cut=0.95)[0]
    assert "95% cut at max_tokens" in drawn(120, cut=0.95)[0] and "tokens/s" in drawn(120, cut=0.95)[0]


def test_a_low_terminal_and_an_encoding_without_blocks() -> None:
    assert len(drawn(80, height=8)) == 1
    lines = drawn(80, encoding="ascii")
    assert len(lines) == 5 and "|||" in lines[3] and "".join(lines).isascii()


@pytest.mark.parametrize(
    ("variables", "is_ascii"),
    [
        ({"LANG": "C"}, True),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, True),  # which Python sets itself
        ({"LC_ALL": "POSIX", "LANG": "en_GB.UTF-8"}, True),
        ({"LANG": "C", "LC_CTYPE": "en_GB.UTF-8"}, False),
        ({"LANG": "C.UTF-8"}, False),
        ({}, False),
    ],
)
def test_the_locale_decides(variables: dict[str, str], is_ascii: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    screen = Screen(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert screen.options.ascii_only == is_ascii


def test_a_terminal_that_cannot_be_redrawn_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for term, kind in (("dumb", PlainObserver), ("xterm", LiveObserver)):
        monkeypatch.setenv("TERM", term)
        with watching(Console(file=io.StringIO(), force_terminal=True)) as observer:
            assert type(observer) is kind
