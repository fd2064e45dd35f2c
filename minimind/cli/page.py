"""Make one self-contained HTML page: light and dark, Korean and English, no network."""

from __future__ import annotations

import html
from collections.abc import Mapping

# Nothing is fetched: the page's own style and script are all that may run or load.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
STYLE = """
:root {
  color-scheme: light dark;
  --paper: light-dark(#ffffff, #16181d); --ink: light-dark(#1d2127, #e4e6ea);
  --faint: light-dark(#5d6672, #9aa3af); --line: light-dark(#d9dde3, #343a43);
  --panel: light-dark(#f5f6f8, #1e2128); --accent: light-dark(#1f6feb, #79b0ff);
  --good: light-dark(#bfe8c8, #1d5a33); --bad: light-dark(#f6c9c5, #7a2b27);
}
* { box-sizing: border-box }
body {
  margin: 0 auto; padding: 1.5rem; max-width: 75rem;
  background: var(--paper); color: var(--ink); line-height: 1.5; overflow-wrap: anywhere;
  font-family: system-ui, "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR",
    "Noto Sans CJK KR", "NanumGothic", sans-serif;
}
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; margin: .5rem 0 }
th, td { padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line) }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
code, pre { font-family: ui-monospace, "D2Coding", "Noto Sans Mono CJK KR", monospace }
.faint { color: var(--faint) } .panel { background: var(--panel); padding: .75rem 1rem;
  border: 1px solid var(--line); border-radius: .4rem; margin: .75rem 0 }
input, select, button { font: inherit; color: inherit; background: var(--panel);
  border: 1px solid var(--line); border-radius: .3rem; padding: .2rem .5rem }
[hidden] { display: none }
"""
FILTER_SCRIPT = """
const rows = [...document.querySelectorAll('.row')];
const words = document.getElementById('words'), tag = document.getElementById('tag');
function filter() {
  const searched = words.value.toLowerCase();
  for (const row of rows) {
    const text = row.dataset.text ?? row.textContent.toLowerCase();
    row.hidden = !(text.includes(searched)
      && (tag.value === '' || row.dataset.tags.split('\\n').includes(tag.value)));
  }
  const shown = rows.filter(row => !row.hidden).length;
  document.getElementById('shown').textContent = shown + ' of ' + rows.length + ' rows shown';
}
words.addEventListener('input', filter);
tag.addEventListener('change', filter);
filter();
"""

# Control characters as the control pictures block shows them; halves of surrogate pairs.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_VISIBLE |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)


def page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A complete HTML document; `body` is HTML whose texts have been through `escape`.

    `style` may use the page's colours: --paper, --ink, --faint, --line, --panel, --accent, --good
    and --bad, each with a light and a dark value. `script` runs after the body is there.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n<script>{script}</script>\n</body>\n</html>\n"
    )


def row_filter(label: str, tags: Mapping[str, str]) -> str:
    """A text box, a choice of tags and a count, for a page whose script has FILTER_SCRIPT.

    Each row of the page is `<div class="row" data-tags="a\\nb">`: its tags, a line each. Words are
    looked for in its text, or in lower case in its `data-text` where it has one. `label` is shown
    where no tag is chosen; `tags` has what the reader sees for each.
    """
    choices = "".join(
        f'<option value="{escape(tag)}">{escape(shown)}</option>' for tag, shown in tags.items()
    )
    return (
        '<p><input id="words" placeholder="filter by words" aria-label="filter by words"> '
        f'<select id="tag" aria-label="{escape(label)}"><option value="">{escape(label)}</option>'
        f'{choices}</select> <span id="shown" class="faint" role="status"></span></p>'
    )


def escape(text: str) -> str:
    """Text for a page or a quoted attribute: no mark-up, and control characters made visible."""
    return html.escape(text.translate(_VISIBLE))
