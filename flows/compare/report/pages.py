"""The report of a comparison: the same tables and texts as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from gradus.flows.compare.report.claims import EARLY_SHARE, shown
from gradus.flows.compare.report.figures import for_page
from gradus.flows.screen.text import duration
from gradus.pipeline.statistics.significance import MeanEstimate

Table = tuple[list[str], list[list[str]]]
"""Header and rows."""
CAPTIONS = {
    "learning-curves": "Learning curves on the validation prompts: mean over seeds, shaded from the lowest to the "
    "highest seed. Dashed: the ends of the stages of a chain.",
    "final-accuracy": "Accuracy on the held-out prompts after the whole budget: dots are seeds, diamonds their means.",
    "accuracy-by-task": "Accuracy on each task's held-out prompts after the whole budget: dots are seeds, diamonds "
    "their means.",
    "differences": "Differences in held-out accuracy of every pair, paired by seed and prompt.",
    "seeds": "The learning curve of every seed. Dashed: the ends of stages.",
    "entropy-length-reward": "Entropy, completion length and reward while training, means over seeds.",
}
METHODS = f"""\
All arms of a seed start from the same checkpoint, made once by the shared stages, and spend the same budget. Rollouts
are all completions that were sampled for training, those of a reference policy included; evaluations are not counted.
**Learning curves** are greedy accuracy on validation prompts that are neither trained on nor reported. **Held-out
accuracy** is greedy, once, at the end.

Intervals are 95 %. *Over seeds* is Student's t over the seeds' values (with 3 seeds, 4.3 standard errors to either
side); *over prompts* is what other prompts could change for these very policies. The **paired test** takes the
difference of two arms for each seed and prompt and treats both as random: the variance of the mean is (MS_seed +
MS_prompt - MS_rest) / (S N) of a two-way analysis of variance, never less than either part alone, with
Satterthwaite's degrees of freedom. p values are corrected by Holm over all pairs of the table. Three seeds are few:
differences of a few points often stay undecided.

**Early gain** is the mean height of the learning curve above its start over the first {EARLY_SHARE:.0%} of the
budget. **90 % of the best** is reached where the smoothed curve (mean of 3 points) first comes 90 % of the way from
the start to the best point of any arm's smoothed curve on that seed. **Worst drop** is the deepest fall of the
smoothed curve below an earlier peak; with a few hundred validation prompts, evaluation noise alone makes drops of
0.01 to 0.02. Entropy and length are means of the last tenth of training. Seconds are training time, learning-curve
evaluations included; arms that ran side by side slowed each other down."""


def table_of_arms(analysis: Mapping[str, Any]) -> Table:
    """A row for each arm."""
    header = [
        "arm",
        "held-out accuracy",
        "95 % over seeds",
        "95 % over prompts",
        "gain",
        "early gain",
        "90 % of the best",
    ]
    header += ["worst drop", "entropy", "length", "rollouts", "tokens", "time"]
    rows = []
    for row in analysis["arms"]:
        reached, seeds = row["near_best_reached"], len(row["seeds"])
        at = f"{row['near_best_at']:,.0f}" if row["near_best_at"] is not None else f"{reached} of {seeds} seeds"
        rows.append([
            row["arm"], f"{row['accuracy']:.3f}", _range(row["interval_seeds"]), _range(row["interval_prompts"]),
            _number(row["gain"], "+.3f"), _number(row["early_gain"]["mean"], "+.3f"), at,
            _number(row["worst_drop"]["mean"], ".3f"), _number(row["entropy"], ".3f"), _number(row["length"], ".1f"),
            _number(row["rollouts"], ",.0f"), _number(row["tokens"], ",.0f"), duration(row["seconds"]),
        ])  # fmt: skip
    return header, rows


def table_of_seeds(analysis: Mapping[str, Any]) -> Table:
    """Held-out accuracy of every arm on every seed; the shared start comes first."""
    seeds = [each["seed"] for each in analysis["starts"]]
    rows = [["start (shared)", *(_number(each.get("accuracy"), ".3f") for each in analysis["starts"])]]
    for row in analysis["arms"]:
        each = dict(zip(row["seeds"], row["accuracy_each"], strict=True))
        rows.append([row["arm"], *(_number(each.get(seed), ".3f") for seed in seeds)])
    return ["arm", *(f"seed {seed}" for seed in seeds)], rows


def table_of_tasks(analysis: Mapping[str, Any]) -> Table:
    """Of several tasks, the held-out accuracy of every arm on each: the mean of its seeds, and each seed's."""
    rows = []
    for row in analysis["arms"]:
        seeds = [[task["each"].get(row["arm"], {}).get(seed) for seed in row["seeds"]] for task in analysis["tasks"]]
        known = [[value for value in values if value is not None] for values in seeds]
        means = [f"{sum(v) / len(v):.3f} ({', '.join(f'{x:.3f}' for x in v)})" if v else "" for v in known]
        rows.append([row["arm"], *means])
    return ["arm", *(f"{each['task']}, {each['prompts']:,} prompts" for each in analysis["tasks"])], rows


def table_of_pairs(pairs: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each pair of arms."""
    rows = []
    for pair in pairs:
        difference = shown(MeanEstimate(pair["mean"], pair["low"], pair["high"]))
        p = [_number(pair[key], ".3f") for key in ("p", "p_holm")]
        rows.append([f"{pair['a']} minus {pair['b']}", difference, *p, _number(pair["df"], ".1f"), str(pair["seeds"])])
    return ["pair", "difference (95 % interval)", "p", "p (Holm)", "degrees of freedom", "seeds"], rows


def table_of_claims(analysis: Mapping[str, Any]) -> Table:
    """A row for each claim."""
    rows = [
        [claim["claim"], f"**{claim['verdict']}**", claim["because"], claim["rule"]] for claim in analysis["claims"]
    ]
    return ["the manual's claim", "verdict", "because", "rule"], rows


def table_of_stages(analysis: Mapping[str, Any]) -> Table:
    """The stages of each arm on its first seed."""
    rows = []
    for row in analysis["arms"]:
        for stage in row["stages"]:
            events = "; ".join(str(event.get("reason", "")) for event in stage.get("events", ()))
            numbers = [_number(stage.get(key), ",.0f") for key in ("steps", "rollouts")]
            numbers += [_number(stage.get("lr"), "g"), stage.get("schedule", "")]
            name = f"{stage['name']} ({stage['variant']})" if "variant" in stage else stage["name"]
            rows.append([row["arm"], name, *numbers, _number(stage.get("accuracy_after"), ".3f"), events])
    return ["arm", "stage", "steps", "rollouts", "lr", "schedule", "held-out accuracy after", "ended by"], rows


def table_of_tuning(tuning: Mapping[str, Any]) -> Table:
    """Validation accuracy of every arm with every value that it tried; the chosen value is bold."""
    values = list(dict.fromkeys(value for found in tuning["arms"].values() for value in found["scores"]))
    rows = []
    for arm, found in tuning["arms"].items():
        cells = [(value, _number(found["scores"].get(value), ".3f") or "failed") for value in values]
        rows.append([arm, *(f"**{text}**" if value == found["value"] else text for value, text in cells)])
    return ["arm", *(f"{tuning['key']} = {value}" for value in values)], rows


def sections(report: Mapping[str, Any]) -> list[tuple[str, str, Table | None, list[str]]]:
    """(title, text in Markdown, table, names of figures) of every section, in their order."""
    analysis = report["analysis"]
    about = [
        f"{len(analysis['arms'])} arms, {report['budget']} each, seeds {', '.join(map(str, report['seeds']))}, "
        f"{analysis['heldout_prompts']:,} held-out and {report['validation_prompts']:,} validation prompts.",
        f"Command: `{report['command']}`",
        f"{report['machine']}. Runs at a time: {report['parallel']}.",
    ]
    about += [f"**Missing:** {text}" for text in report["missing"]] + list(report["notes"])
    found: list[tuple[str, str, Table | None, list[str]]] = [
        ("", "\n\n".join(about), None, ["learning-curves"]),
        ("Verdicts", "", table_of_claims(analysis), []),
        ("Arms", "", table_of_arms(analysis), ["final-accuracy"]),
        ("Held-out accuracy by seed", "", table_of_seeds(analysis), ["seeds"]),
        ("Differences", "", table_of_pairs(analysis["pairs"]), ["differences"]),
        ("While training", "", None, ["entropy-length-reward"]),
        ("What each arm trained", "On the first seed.", table_of_stages(analysis), []),
    ]
    if analysis["tasks"]:
        found.insert(
            4,
            (
                "Held-out accuracy by task",
                "Means, and in brackets each seed.",
                table_of_tasks(analysis),
                ["accuracy-by-task"],
            ),
        )
        found[6:6] = [(f"Differences on {e['task']}", "", table_of_pairs(e["pairs"]), []) for e in analysis["tasks"]]
    if report["tuning"]:
        tuning = report["tuning"]
        text = f"Each arm tried the same values on seed {tuning['seed']}, which is not reported. Scores are mean "
        text += "accuracy on the validation prompts over the last quarter of the curve; held-out prompts were not used."
        found.append(("Tuning", text, table_of_tuning(tuning), []))
    found.append(("How it was measured", METHODS, None, []))
    return found


def as_markdown(report: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The report in Markdown, with links to the figures in ``figures/``."""
    parts = [f"# {report['name']}"]
    for title, text, table, names in sections(report):
        parts += [f"## {title}"] if title else []
        parts += [text] if text else []
        parts += [markdown_table(*table)] if table and table[1] else []
        parts += [f"![{CAPTIONS[name]}](figures/{name}.svg)\n\n*{CAPTIONS[name]}*" for name in names if name in figures]
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; vertical bars in its cells are escaped."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    texts = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([texts[0], "|" + "---|" * len(header), *texts[1:]])


STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --page: #ffffff; --soft: #7b7f8640; --mark: #0b6e4f; --no: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6eb; --page: #15171b; --mark: #5fd3a5; --no: #ff8a80; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.86rem; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.8rem 0.35rem 0;
         border-bottom: 1px solid var(--soft); }
td { font-variant-numeric: tabular-nums; } th { white-space: nowrap; }
figure { margin: 1.5rem 0; } figure svg { width: 100%; height: auto; } figcaption { font-size: 0.86rem; opacity: 0.75; }
.supported { color: var(--mark); font-weight: 600; } .not { color: var(--no); font-weight: 600; }
code { font-size: 0.88em; overflow-wrap: anywhere; }
"""


def as_page(report: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The report as one HTML file that contains its styles and figures and loads nothing."""
    body = [f"<h1>{html.escape(report['name'])}</h1>"]
    for heading, text, table, names in sections(report):
        body += [f"<h2>{html.escape(heading)}</h2>"] if heading else []
        body += [f"<p>{_inline(paragraph)}</p>" for paragraph in text.split("\n\n") if paragraph]
        body += [_html_table(*table)] if table and table[1] else []
        body += [
            f"<figure>{for_page(figures[name])}<figcaption>{html.escape(CAPTIONS[name])}</figcaption></figure>"
            for name in names
            if name in figures
        ]
    return page(report["name"], body)


def page(title: str, body: Sequence[str]) -> str:
    """One HTML file in the style of reports, of a title that is text and of parts that are HTML already."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html>\n<html lang=en><head>{head}</head><body>\n" + "\n".join(body) + "\n</body></html>\n"


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)]
    lines += ["".join(f"<td>{_inline(cell)}</td>" for cell in row) for row in rows]
    return "<div class=wide><table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def _inline(text: str) -> str:
    """The Markdown that the report uses inside a line, as HTML; verdicts have a colour.

    >>> _inline("a **b** `c<d`")
    'a <b>b</b> <code>c&lt;d</code>'
    """
    import re

    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text, quote=False))
    text = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)
    text = re.sub(r"\*([^*\s][^*]*)\*", r"<i>\1</i>", text)
    for verdict, name in (("supported", "supported"), ("not supported", "not")):
        text = text.replace(f"<b>{verdict}</b>", f'<span class="{name}">{verdict}</span>')
    return text


def _range(interval: Sequence[float | None]) -> str:
    low, high = interval
    return f"{low:.3f} to {high:.3f}" if low is not None and high is not None else ""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
