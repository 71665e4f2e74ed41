"""A difference between two policies as one HTML file that loads nothing. Every text in it is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from gradus.flows.compare.report.pages import page
from gradus.flows.diff.screen import (
    ONLY,
    SIDES,
    accuracy_header,
    accuracy_note,
    accuracy_rows,
    only_text,
    option_header,
    option_rows,
    prompt_rows,
)
from gradus.flows.screen.text import count, number
from gradus.pipeline.common.shown import visible

TEST = (
    "p is McNemar's exact test on the prompts of both, two-sided; the interval is Bonett and Price's for paired "
    "shares. Both are about these two policies: what another seed would change they do not say, for which there is "
    "<code>gradus compare</code>."
)
STYLE = """<style>
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: 0.86rem; }
.prompt { margin: 1.2rem 0; } .prompt th { font-weight: 600; padding-right: 1rem; } .prompt td { width: 100%; }
.right { color: var(--mark); } .wrong { color: var(--no); }
</style>"""


def as_page(found: Mapping[str, Any]) -> str:
    """The page of what :func:`gradus.flows.diff.diff.diff` found."""
    title = f"{found['a']['name']} and {found['b']['name']}"
    body = [STYLE, f"<h1>{_text(title)}</h1>"]
    for side, mark in SIDES:
        state = found[side]
        told = f"{state['name']}, held-out accuracy {number(state['accuracy'])} at step {count(state['step'])}"
        body.append(f"<p><b>{mark}</b>: {_text(told)}<br><code>{_text(state['checkpoint'])}</code></p>")
    body += [f"<p>({_text(note)})</p>" for note in found["notes"]]
    body.append("<h2>Options that differ</h2>")
    body.append(_table(option_header(), option_rows(found)) if found["options"] else "<p>None.</p>")
    body.append(f"<h2>Held-out accuracy on the {count(found['prompts']['both'])} prompts of both</h2>")
    body += [_table(accuracy_header(found), accuracy_rows(found)), f"<p>{TEST} {accuracy_note(found)}</p>"]
    for key, one, other in ONLY:
        body.append(f"<h2>{_text(only_text(found[key], one, other).rstrip('.:'))}</h2>")
        body += [_prompt(prompt, one) for prompt in found[key]["prompts"]]
    return page(title, body)


def _prompt(prompt: Mapping[str, Any], right: str) -> str:
    lines = []
    for what, text in prompt_rows(prompt, right):
        kind = what.rpartition(", ")[2] if what.endswith((", right", ", wrong")) else ""
        lines.append(f"<tr><th class='{kind}'>{_text(what)}</th><td><pre>{_text(text)}</pre></td></tr>")
    return f"<table class=prompt>{''.join(lines)}</table>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{_text(cell)}</th>" for cell in header)]
    lines += ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    return "<div class=wide><table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def _text(text: str) -> str:
    """A text as HTML shows it, without characters that would hide or reorder it."""
    return html.escape(visible(text))
