"""Show a data set as one HTML page: counts, a histogram of lengths, and rows token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minimind.cli.page import FILTER_SCRIPT, escape, page, row_filter
from minimind.inspect.lengths import draw_lengths
from minimind.inspect.preflight import Check
from minimind.inspect.survey import HARMLESS, ShownRow, Survey
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
.failed { background: var(--bad) } .outcome { white-space: nowrap }
"""
SCRIPT = """
const panel = document.getElementById('token');
document.addEventListener('mouseover', event => {
  const token = event.target.closest('.tokens span');
  if (!token) return;
  panel.textContent = 'id ' + token.dataset.id + ' · bytes ' + token.dataset.bytes + ' · '
    + (token.classList.contains('lost') ? 'lost to truncation'
      : token.classList.contains('trained') ? 'trained' : 'context');
});
"""


def inspection_page(
    title: str,
    lines: Sequence[str],
    checks: Sequence[Check],
    counts: Mapping[str, Mapping[Any, int]],
    found: Survey,
    tokenizer: Tokenizer,
    max_length: int,
) -> str:
    """The page.

    Args:
        title: of the page.
        lines: sentences about all rows.
        checks: of the preflight, if it ran.
        counts: tables by their titles.
        found: lengths, and the rows to show.
        tokenizer: gives the tokens' bytes.
        max_length: the options' --max-length.
    """
    reasons = list(dict.fromkeys(reason for row in found.shown for reason in row.reasons))
    body = [
        '<div class="panel">' + "<br>".join(map(escape, lines)) + "</div>",
        _checks(checks),
        "<h2>Tokens per row</h2>",
        f"<pre>{escape(chr(10).join(draw_lengths(found.lengths, max_length)))}</pre>",
        "<h2>What the rows are</h2>",
        '<div class="tables">',
        *(_table(title, table) for title, table in counts.items()),
        "</div>",
        "<h2>Rows, token by token</h2>",
        "<p>Shaded tokens are trained; a vertical line marks each token's start.</p>",
        row_filter("every reason", {reason: reason for reason in reasons}),
        *(_row(row, tokenizer) for row in found.shown),
        '<div id="token" role="status">Point at a token to see its id and bytes.</div>',
    ]
    return page(title, "\n".join(body), style=STYLE, script=FILTER_SCRIPT + SCRIPT)


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


def _table(name: str, counts: Mapping[Any, int]) -> str:
    largest = sorted(counts.items(), key=lambda item: -item[1])[:20]
    rows = "".join(
        f'<tr><td>{escape(str(value))}</td><td class="number">{count:,}</td></tr>'
        for value, count in largest
    )
    return f'<table><tr><th>{escape(name)}</th><th class="number">count</th></tr>{rows}</table>'


def _row(row: ShownRow, tokenizer: Tokenizer) -> str:
    trained = sum(row.example.loss_mask[: row.kept])
    part, more = row.first_tokens()
    text = tokenizer.decode(part.input_ids)
    decoder = tokenizer.stream_decoder()
    every_reason = "\n".join(row.reasons)
    reasons = " ".join(
        f'<span class="reason{"" if reason in HARMLESS else " suspicious"}">{escape(reason)}</span>'
        for reason in row.reasons
    )
    return (
        f'<div class="row panel" data-tags="{escape(every_reason)}" '
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
    """One token; a character of several tokens is shown at the last of them."""
    kind = "lost" if not kept else "trained" if trained else ""
    control = "control" if id in tokenizer.control_ids else ""
    shown = escape(text or "‥").replace("\n", "⏎\n")
    facts = f'data-id="{id}" data-bytes="{tokenizer.token_bytes(id).hex(" ")}"'
    return f'<span class="{kind} {control}" {facts}>{shown}</span>'
