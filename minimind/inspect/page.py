"""Show a data set as one HTML page: counts, a histogram of lengths, and rows token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minimind.cli.page import escape, page
from minimind.inspect.preflight import Check
from minimind.inspect.survey import PICKED, ShownRow, Survey
from minimind.tokenizer import Tokenizer

STYLE = """
.tokens { white-space: pre-wrap; font-family: ui-monospace, "D2Coding", "Noto Sans Mono CJK KR",
  monospace; line-height: 1.9 }
.tokens span { border-left: 1px solid var(--faint); padding: .1rem 0 }
.tokens .trained { background: var(--good) }
.tokens .lost { text-decoration: line-through; opacity: .55 }
.tokens .control { color: var(--accent) }
.tokens span:hover { outline: 2px solid var(--accent) }
#token { position: sticky; bottom: 0; background: var(--panel); border: 1px solid var(--line);
  padding: .4rem .8rem; min-height: 2.3rem; font-variant-numeric: tabular-nums }
.reason { border: 1px solid var(--line); border-radius: .3rem; padding: 0 .4rem;
  font-size: .85rem }
.suspicious { background: var(--bad); border-color: var(--bad) }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-start }
svg { max-width: 100%; height: auto } svg .bar { fill: var(--accent) }
svg .limit { stroke: var(--ink); stroke-dasharray: 4 3 }
svg text { fill: var(--faint); font-size: 11px }
.failed { background: var(--bad) } .outcome { white-space: nowrap }
"""
SCRIPT = """
const told = document.getElementById('token');
document.addEventListener('mouseover', event => {
  const token = event.target.closest('.tokens span');
  if (!token) return;
  told.textContent = 'id ' + token.dataset.id + ' · bytes ' + token.dataset.bytes + ' · '
    + (token.classList.contains('lost') ? 'lost to truncation'
      : token.classList.contains('trained') ? 'trained' : 'context');
});
const rows = [...document.querySelectorAll('.row')];
const words = document.getElementById('words'), reason = document.getElementById('reason');
function filter() {
  const wanted = words.value.toLowerCase();
  let shown = 0;
  for (const row of rows) {
    const fits = row.dataset.text.includes(wanted)
      && (reason.value === '' || row.dataset.reasons.split('\\n').includes(reason.value));
    row.hidden = !fits;
    shown += fits ? 1 : 0;
  }
  document.getElementById('shown').textContent = shown + ' of ' + rows.length + ' rows shown';
}
words.addEventListener('input', filter);
reason.addEventListener('change', filter);
filter();
"""
BINS = 40
WIDTH, HEIGHT = 720, 180


def inspection_page(
    title: str,
    lines: Sequence[str],
    checks: Sequence[Check],
    survey: Survey,
    tokenizer: Tokenizer,
    max_length: int,
) -> str:
    """The page.

    Args:
        title: what is looked at.
        lines: sentences about the whole.
        checks: of the preflight, if it was asked for.
        survey: counts and rows.
        tokenizer: tells the bytes of tokens.
        max_length: drawn into the histogram.
    """
    reasons = list(dict.fromkeys(reason for row in survey.shown for reason in row.reasons))
    options = "".join(f"<option>{escape(reason)}</option>" for reason in reasons)
    body = [
        '<div class="panel">' + "<br>".join(map(escape, lines)) + "</div>",
        _checks(checks),
        "<h2>Tokens per row</h2>",
        _histogram(np.array(survey.lengths), max_length),
        "<h2>What the rows are</h2>",
        '<div class="tables">',
        *(_counts(name, counts) for name, counts in tables(survey).items()),
        "</div>",
        "<h2>Rows, token by token</h2>",
        '<p>Shaded tokens are trained; a line stands where a token begins. <input id="words" '
        'placeholder="filter by words" aria-label="filter by words"> <select id="reason" '
        f'aria-label="reason"><option value="">every reason</option>{options}</select> '
        '<span id="shown" class="faint" role="status"></span></p>',
        *(_row(row, tokenizer) for row in survey.shown),
        '<div id="token" role="status">Point at a token to see its id and bytes.</div>',
    ]
    return page(title, "\n".join(body), style=STYLE, script=SCRIPT)


def tables(survey: Survey) -> dict[str, Mapping[Any, int]]:
    """The survey's counts by title; empty ones left out."""
    counts: dict[str, Mapping[Any, int]] = {
        "shape": survey.shapes,
        "messages in a row": survey.messages,
        "role": survey.roles,
        "unusual turns": survey.turns,
        "script of question > answer": survey.languages,
        "looks like a control token": survey.look_alikes,
    }
    return {name: table for name, table in counts.items() if table}


def _checks(checks: Sequence[Check]) -> str:
    if not checks:
        return ""
    rows = "".join(
        f'<tr class="{check.outcome.split()[0]}"><td class="outcome">{escape(check.outcome)}</td>'
        f"<td>{escape(check.name)}</td><td>{escape(check.fact)}"
        + (f"<br>{escape(check.consequence)}" if check.consequence else "")
        + "</td></tr>"
        for check in checks
    )
    return f"<h2>Checks</h2><table>{rows}</table>"


def _histogram(lengths: np.ndarray[Any, Any], max_length: int) -> str:
    """Bars of rows by length, and a line at the most that is kept."""
    if not len(lengths):
        return "<p>no rows</p>"
    top = max(int(lengths.max()), 1)
    counts, edges = np.histogram(lengths, bins=min(BINS, top), range=(0, top))
    base, step = HEIGHT - 20, WIDTH / len(counts)
    bars = "".join(
        f'<rect class="bar" x="{index * step:.1f}" width="{max(step - 1, 1):.1f}" '
        f'y="{base - height:.1f}" height="{height:.1f}"><title>{edges[index]:.0f} to '
        f"{edges[index + 1]:.0f} tokens: {count:,} rows</title></rect>"
        for index, count in enumerate(counts)
        if (height := max(base * count / counts.max(), 1 if count else 0))
    )
    limit = ""
    if max_length <= top:
        x = WIDTH * max_length / top
        anchor = "end" if x > WIDTH / 2 else "start"
        limit = (
            f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{base}"/>'
            f'<text x="{x:.1f}" y="12" text-anchor="{anchor}"> --max-length {max_length} </text>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="rows by length">{bars}{limit}<text x="0" y="{HEIGHT - 4}">0</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 4}" text-anchor="end">{top:,} tokens</text></svg>'
    )


def _counts(name: str, counts: Mapping[Any, int]) -> str:
    largest = sorted(counts.items(), key=lambda item: -item[1])[:20]
    rows = "".join(
        f'<tr><td>{escape(str(value))}</td><td class="number">{count:,}</td></tr>'
        for value, count in largest
    )
    return f'<table><tr><th>{escape(name)}</th><th class="number">count</th></tr>{rows}</table>'


def _row(row: ShownRow, tokenizer: Tokenizer) -> str:
    trained = sum(row.example.loss_mask[: row.kept])
    part, more = row.part()
    text = tokenizer.decode(part.input_ids)
    decoder = tokenizer.stream_decoder()
    every_reason = "\n".join(row.reasons)  # none of them has a line's end in it
    reasons = " ".join(
        f'<span class="reason{"" if reason in PICKED else " suspicious"}">{escape(reason)}</span>'
        for reason in row.reasons
    )
    return (
        f'<div class="row panel" data-reasons="{escape(every_reason)}" '
        f'data-text="{escape(text.lower())}">'
        f'<div><span class="faint">{escape(row.place)} · {len(row.example):,} tokens, '
        f'{trained:,} trained</span> {reasons}</div><div class="tokens">'
        + "".join(
            _token(tokenizer, id, decoder.push(id), trained, at < row.kept)
            for at, (id, trained) in enumerate(zip(part.input_ids, part.loss_mask, strict=True))
        )
        + "</div>"
        + (f'<div class="faint">{escape(more)}</div>' if more else "")
        + "</div>"
    )


def _token(tokenizer: Tokenizer, id: int, text: str, trained: bool, kept: bool) -> str:
    """One token; a character of several stands in the last of them."""
    kinds = [
        name
        for name, holds in (
            ("trained", trained and kept),
            ("lost", not kept),
            ("control", id in tokenizer.control_ids),
        )
        if holds
    ]
    shown = escape(text or "‥").replace("\n", "⏎\n")
    facts = f'data-id="{id}" data-bytes="{tokenizer.token_bytes(id).hex(" ")}"'
    return f'<span class="{" ".join(kinds)}" {facts}>{shown}</span>'
