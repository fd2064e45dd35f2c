"""Show an evaluation as one HTML page: figures, differences, answers side by side."""

from __future__ import annotations

from typing import Any

from minimind.cli.page import FILTER_SCRIPT, escape, page, row_filter
from minimind.data.keys import KeyCounts
from minimind.evaluate.figures import describe_counts

STYLE = """
.answers { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)) }
.answers > div { white-space: pre-wrap }
.row { white-space: normal } .question { white-space: pre-wrap; font-weight: 600 }
.wrong { border-left: .3rem solid var(--bad); padding-left: .5rem }
.right { border-left: .3rem solid var(--good); padding-left: .5rem }
"""
VERDICTS = ("exact", "contains", "regex", "numeric")  # metrics that say if an answer is right
TAGS = {"wrong": "with a wrong answer", "right": "with a right answer"}


def evaluation_page(results: dict[str, Any]) -> str:
    """The page for what `python -m minimind.evaluate` writes as results.json."""
    models = results["models"]
    names = list(dict.fromkeys(name for model in models for name in model["figures"]))
    heads = "".join(f'<th class="number">{escape(model["model"])}</th>' for model in models)
    body = [
        f"<p>{escape(', '.join(results['options']['files']))}<br>"
        + "<br>".join(escape(describe_counts(model)) for model in models)
        + "".join(f"<br>{escape(line)}" for line in KeyCounts(**results["keys"]).describe())
        + "</p>",
        f"<table><tr><th>figure</th>{heads}</tr>",
        *(_figure_row(name, [model["figures"] for model in models]) for name in names),
        "</table>",
        *(_difference(difference) for difference in results["differences"]),
        *(_sources(model) for model in models if model["sources"]),
        f"<h2>Rows</h2>{row_filter('all rows', TAGS)}",
        *(_row(row, [model["model"] for model in models]) for row in results["rows"]),
    ]
    return page("Evaluation", "\n".join(body), style=STYLE, script=FILTER_SCRIPT)


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
        f"<h2>{escape(title)}</h2><p>On the same rows. The interval holds 95% of the differences "
        "when rows are drawn with replacement.</p><table><tr><th>figure</th>"
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
    verdicts = [_verdict(answer["sums"]) for answer in row["answers"]]
    answers = "".join(map(_answer, models, row["answers"], verdicts))
    expected = row["expected"]
    if expected is not None:
        answers = f'<div><span class="faint">expected</span><br>{escape(expected)}</div>{answers}'
    tags = escape("\n".join(verdicts))
    return (
        f'<div class="row panel" data-tags="{tags}">'
        f'<div class="faint">{escape(row["path"])}:{row["line"]}</div>'
        f'<div class="question">{escape(row["question"])}</div>'
        f'<div class="answers">{answers}</div></div>'
    )


def _verdict(sums: dict[str, Any]) -> str:
    verdicts = [sums[name][0] for name in VERDICTS if name in sums]
    return ("right" if all(verdicts) else "wrong") if verdicts else ""


def _answer(model: str, answer: dict[str, Any], verdict: str) -> str:
    values = {name: total / count for name, (total, count) in answer["sums"].items()}
    shown = (*VERDICTS, "chrf", "tokens", "loss")
    notes = [f"{name} {values[name]:.3g}" for name in shown if name in values]
    notes += ["cut"] if values.get("ended") == 0 else []
    head = escape(f"{model}; {', '.join(notes)}")
    text = "(no answer)" if answer["answer"] is None else escape(answer["answer"])
    return f'<div class="{verdict}"><span class="faint">{head}</span><br>{text}</div>'
