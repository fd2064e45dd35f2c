"""Show an evaluation as one HTML page: figures, differences, answers beside each other."""

from __future__ import annotations

from typing import Any

from minimind.cli.page import escape, page
from minimind.evaluate.evaluation import describe_counts

STYLE = """
.answers { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)) }
.answers > div { white-space: pre-wrap } .row h3 { font-size: 1rem; margin: .25rem 0 }
.row { white-space: normal } .question { white-space: pre-wrap; font-weight: 600 }
.wrong { border-left: .3rem solid var(--bad); padding-left: .5rem }
.right { border-left: .3rem solid var(--good); padding-left: .5rem }
"""
SCRIPT = """
const rows = [...document.querySelectorAll('.row')];
const words = document.getElementById('words'), which = document.getElementById('which');
function filter() {
  const wanted = words.value.toLowerCase();
  let shown = 0;
  for (const row of rows) {
    const fits = row.textContent.toLowerCase().includes(wanted)
      && (which.value === '' || row.querySelector('.' + which.value));
    row.hidden = !fits;
    shown += fits ? 1 : 0;
  }
  document.getElementById('shown').textContent = shown + ' of ' + rows.length + ' rows';
}
words.addEventListener('input', filter);
which.addEventListener('change', filter);
filter();
"""
RIGHT = ("exact", "contains", "regex", "numeric")  # say by themselves whether an answer is right


def evaluation_page(results: dict[str, Any]) -> str:
    """The page for what `python -m minimind.evaluate` writes as results.json."""
    models = results["models"]
    names = list(dict.fromkeys(name for model in models for name in model["figures"]))
    heads = "".join(f'<th class="number">{escape(model["model"])}</th>' for model in models)
    body = [
        f"<p>{escape(', '.join(results['options']['files']))}<br>"
        + "<br>".join(escape(describe_counts(model)) for model in models)
        + "</p>",
        f"<table><tr><th>figure</th>{heads}</tr>",
        *(_figure_row(name, [model["figures"] for model in models]) for name in names),
        "</table>",
        *(_difference(difference) for difference in results["differences"]),
        *(_sources(model) for model in models if model["sources"]),
        '<h2>Rows</h2><p><input id="words" placeholder="filter by words" '
        'aria-label="filter by words"> <select id="which" aria-label="which rows">'
        '<option value="">all rows</option><option value="wrong">with a wrong answer</option>'
        '<option value="right">with a right answer</option></select> '
        '<span id="shown" class="faint" role="status"></span></p>',
        *(_row(row, [model["model"] for model in models]) for row in results["rows"]),
    ]
    return page("Evaluation", "\n".join(body), style=STYLE, script=SCRIPT)


def _figure_row(name: str, figures: list[dict[str, float]]) -> str:
    cells = "".join(
        f'<td class="number">{f"{found[name]:.4f}" if name in found else "–"}</td>'
        for found in figures
    )
    return f"<tr><td>{escape(name)}</td>{cells}</tr>"


def _difference(difference: dict[str, Any]) -> str:
    title = f"{difference['model']} minus {difference['from']}"
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{mean:+.4f}</td>'
        f'<td class="number">{low:+.4f} to {high:+.4f}</td></tr>'
        for name, (mean, low, high) in difference["figures"].items()
    )
    return (
        f"<h2>{escape(title)}</h2><p>On the same rows; the interval holds 95% of the differences "
        "that rows drawn with replacement give.</p><table><tr><th>figure</th>"
        f'<th class="number">difference</th><th class="number">interval</th></tr>{rows}</table>'
    )


def _sources(model: dict[str, Any]) -> str:
    names = list(model["figures"])
    heads = "".join(f'<th class="number">{escape(path)}</th>' for path in model["sources"])
    rows = "".join(_figure_row(name, list(model["sources"].values())) for name in names)
    return (
        f"<h2>{escape(model['model'])} by file</h2>"
        f"<table><tr><th>figure</th>{heads}</tr>{rows}</table>"
    )


def _row(row: dict[str, Any], models: list[str]) -> str:
    answers = "".join(
        _answer(name, given) for name, given in zip(models, row["answers"], strict=True)
    )
    expected = row["expected"]
    if expected is not None:
        answers = f'<div><span class="faint">expected</span><br>{escape(expected)}</div>{answers}'
    return (
        f'<div class="row panel"><div class="faint">{escape(row["path"])}:{row["line"]}</div>'
        f'<div class="question">{escape(row["question"])}</div>'
        f'<div class="answers">{answers}</div></div>'
    )


def _answer(model: str, given: dict[str, Any]) -> str:
    values, answer = given["values"], given["answer"]
    verdicts = [values[name] for name in RIGHT if name in values]
    kind = ("right" if all(verdicts) else "wrong") if verdicts else ""
    notes = [
        f"{name} {value:.3g}"
        for name, value in values.items()
        if name in (*RIGHT, "chrf", "tokens")
    ]
    if values.get("supervised"):
        notes.append(f"loss {values['nats'] / values['supervised']:.3f}")
    if values.get("ended") == 0:
        notes.append("cut")
    head = escape("; ".join([model, ", ".join(notes)]))
    text = "(not asked)" if answer is None else escape(answer)
    return f'<div class="{kind}"><span class="faint">{head}</span><br>{text}</div>'
