"""``gradus advise``: which stages fit a policy and a task, found out by sampling, without training."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from gradus.flows.cli.arguments import RUNS, AsJson, Config, Overrides, Runs
from gradus.flows.screen.errors import quiet_libraries
from gradus.flows.screen.text import console, line_printer, print_json
from gradus.pipeline.common import interruption
from gradus.pipeline.common.shown import gradus_command, shown_path


def advise(
    config: Config,
    overrides: Overrides = None,
    prompts: Annotated[int, typer.Option(min=8, max=10_000, help="Training prompts to probe.")] = 128,
    samples: Annotated[int, typer.Option(min=4, max=1024, help="Completions of each prompt.")] = 16,
    seconds: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Time for the probe; fewer prompts if it is over, 8 at least.")
    ] = 120,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN|CHECKPOINT", help="Probe this policy instead of the one at the start."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Probe what this stage of the run (--from, or CONFIG's) handed over."),
    ] = None,
    write: Annotated[Path | None, typer.Option(metavar="NEW.yaml", help="Write the advised configuration.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --write replace a file.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the diagnosis: .svg, .png or .pdf.")] = None,
    as_json: AsJson = False,
    runs: Runs = RUNS,
) -> None:
    """Probe a policy on its task, without training, and say which stages fit and what they will cost."""
    from gradus.flows.advise import advise as work
    from gradus.flows.advise import plot as drawing
    from gradus.flows.advise import rewrite
    from gradus.flows.advise.progress import STOPPING, watching
    from gradus.flows.advise.screen import print_report
    from gradus.flows.open_run import check_world, load

    quiet_libraries()
    loaded, stages = load(config, overrides)
    if write is not None:
        rewrite.check_target(write, force, loaded.config)
    if plot is not None:
        drawing.check_plot(plot)
    probed = work.find_probed_policy(loaded, source, after, runs)
    check_world(loaded, stages, runs)
    screen, beside = console(), console(stderr=as_json)
    with ExitStack() as stack:
        stack.enter_context(interruption.handled(lambda _: line_printer(beside)(STOPPING)))
        with watching(beside) as watch:
            report = work.advise(loaded, stages, probed, prompts, samples, seconds, watch)
        stack.enter_context(interruption.deferred())  # what was sampled is reported
        chain = rewrite.advised_config(loaded, overrides or [], report.advice, stages)
        estimates = work.costs(chain, stages, report)
        found = report.record(estimates)
        print_json(found, allow_nan=False) if as_json else print_report(report, estimates, screen)
        notes: list[str] = []
        if plot is not None:
            drawing.draw(report.probe.diagnosis, f"{loaded.config.name}: {probed.shown}", plot)
            notes.append(f"the diagnosis is drawn in {shown_path(plot)}")
        if write is not None:
            rewrite.write(loaded, overrides or [], report.advice, stages, write, probed.shown)
            train = gradus_command("run", shown_path(write), runs=runs)
            notes.append(f"the advised configuration is in {shown_path(write)}; to train it: {train}")
        if probed.untrained and after is None:
            notes.append(after_sft(config, loaded.config, runs))
        _print_notes([] if as_json else notes, screen)


def _print_notes(notes: list[str], screen: Any) -> None:
    if notes:
        screen.print()
        for line in filter(None, notes):
            line_printer(screen)(line)


def after_sft(source: str, config: Any, runs: Path) -> str:
    """The command that probes again after the stage on demonstrations; empty where the chain has no such stage."""
    from gradus.stages import discover

    found = discover()
    teach = [each.label for each in config.trained if found[each.stage].needs(each).completions == "demonstrations"]
    if not teach:
        return ""
    again = gradus_command("advise", source, "--after", teach[0], runs=runs)
    return f"probe again once a run has done its {teach[0]} stage: {again}"
