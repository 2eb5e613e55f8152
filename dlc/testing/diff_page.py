"""A diff as one page for a browser: no script, no font, no picture from anywhere else.

Errors are drawn as bars on one logarithmic scale, beside PyTorch's and the tolerance, because what
matters is how they compare; the numbers stand beside them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

from dlc.testing.diff_judge import WRONG
from dlc.testing.diff_report import DiffReport, Row, number, share

#: Headings, with what they mean.
HEADINGS = (
    ("module", "The path of the layer; → leads from the module whose code it is to what reads it."),
    ("layer", "Its class, the parameter of a gradient, or file and line of the code."),
    (
        "verdict",
        "ok: as good as PyTorch. rounding: farther, as rounding explains. WRONG: a bug. "
        "nothing: no number to compare.",
    ),
    ("local error", "Fed with the reference's input. Bars: dlc, PyTorch; the line: the tolerance."),
    ("dlc", "Largest distance from float64."),
    ("PyTorch", "Largest distance from float64."),
    ("of tolerance", "The part of the tolerance that dlc uses."),
    ("of bound", "For linear layers: the part used of the bound that no rounding can exceed."),
    ("accumulated", "Fed through the net: dlc's largest distance from float64."),
    ("PyTorch", "Fed through the net: PyTorch's."),
    ("largest", "The largest element in float64."),
)


def page(report: DiffReport) -> str:
    """The page as HTML."""
    title = f"{report.model} and {report.torch_model}"
    low, high = _range(report.rows)
    rows = "\n".join(_row(each, low, high) for each in report.rows)
    heads = "".join(
        f'<th scope="col" title="{_text(meaning)}">{_text(name)}</th>' for name, meaning in HEADINGS
    )
    legend = "".join(f"<dt>{_text(n)}</dt><dd>{_text(m)}</dd>" for n, m in HEADINGS)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>dlc diff: {_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{_text(title)} <small>in PyTorch, {_text(report.dtype)} against float64</small></h1>
{_list("The weights differ", report.weights)}
<p class="{"good" if report.ok else "bad"} verdict">{_text(report.summary())}</p>
{_first(report)}
{_list("On one side only, judged as code between layers", report.unmatched)}
{_list("Notes", report.notes)}
<div class="scroll"><table>
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
<details><summary>What the columns mean</summary><dl>{legend}</dl></details>
</body>
</html>
"""


def _first(report: DiffReport) -> str:
    first = report.first
    return "" if first is None else _list("", filter(None, (first.why, *first.hints)))


def _list(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    head = f"<h2>{_text(title)}</h2>" if title else ""
    return f"{head}<ul>{items}</ul>" if items else ""


def _row(each: Row, low: float, high: float) -> str:
    name = each.name if each.kind != "between" else each.where
    shown = each.title.split(": ")[0] if each.kind == "gradient" else each.title
    classes = f"{each.kind} {'bad' if each.verdict == WRONG else ''}".strip()
    numbers = (
        number(each.local),
        number(each.torch_local),
        share(each.used),
        "" if each.share is None else share(each.share),
        number(each.accumulated),
        number(each.torch_accumulated),
        f"{each.scale:.3g}",
    )
    cells = "".join(f'<td class="number">{_text(words)}</td>' for words in numbers)
    shape = " × ".join(map(str, each.shape)) or "scalar"
    about = "; ".join(filter(None, (shape, each.why, *each.hints)))
    return (
        f'<tr class="{classes}" title="{_text(about)}"><th scope="row">{_text(shown.strip())}</th>'
        f"<td>{_text(name)}</td><td class='word {each.verdict}'>{each.verdict}</td>"
        f'<td class="bars">{_bars(each, low, high)}</td>{cells}</tr>'
    )


def _bars(each: Row, low: float, high: float) -> str:
    """dlc's and PyTorch's local error, and a line at the tolerance."""
    ours, theirs = (_place(v, low, high) for v in (each.local, each.torch_local))
    limit = _place(each.tolerance, low, high)
    words = f"dlc {number(each.local)}, PyTorch {number(each.torch_local)}"
    words += f", tolerance {number(each.tolerance)}"
    line = f'<i class="limit" style="left:{limit:.1f}%"></i>' if each.tolerance else ""
    return (
        f'<div role="img" aria-label="{_text(words)}"><i class="ours" style="width:{ours:.1f}%">'
        f'</i><i class="theirs" style="width:{theirs:.1f}%"></i>{line}</div>'
    )


def _range(rows: Iterable[Row]) -> tuple[float, float]:
    """The decimal logarithms between which all errors and tolerances lie."""
    every = [v for each in rows for v in (each.local, each.torch_local, each.tolerance)]
    logs = [math.log10(value) for value in every if 0 < value < math.inf]
    low, high = min(logs, default=-8.0), max(logs, default=0.0)
    return math.floor(low) - 0.5, max(math.ceil(high), math.floor(low) + 1)


def _place(value: float, low: float, high: float) -> float:
    """Where a value is on the logarithmic scale, in per cent of its width."""
    if value <= 0:
        return 0.0
    if value == math.inf:
        return 100.0
    return min(100.0, max(0.0, 100 * (math.log10(value) - low) / (high - low)))


def _text(words: str) -> str:
    return html.escape(words, quote=True)


_STYLE = """
:root { color-scheme: light dark; --line: #d5d8dd; --ours: #2a6fdb; --theirs: #9aa3b0;
  --good: #1a7f37; --bad: #c62828; --shade: #fdeaea; --quiet: #667; --limit: #d97706; }
@media (prefers-color-scheme: dark) { :root { --line: #3a3f47; --ours: #6ea8fe; --theirs: #737b88;
  --good: #56d364; --bad: #ff7b72; --shade: #3b1d1f; --quiet: #9aa3b0; --limit: #f0b04a; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; } h1 small { font-weight: normal; color: var(--quiet); }
h2 { font-size: 1rem; margin: 1rem 0 .2rem; } ul { margin: .2rem 0 1rem; }
p.verdict { font-weight: 600; font-size: 1.1rem; margin: .3rem 0; }
p.good, td.ok { color: var(--good); } p.bad, td.WRONG { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; font-weight: normal; }
thead th { color: var(--quiet); font-size: .85rem; vertical-align: bottom; }
thead th:nth-child(n + 5) { text-align: right; }
tbody th { font-family: ui-monospace, monospace; font-size: .9rem; }
tr.between th, tr.between td { color: var(--quiet); } tr.between th { padding-left: 1.8rem; }
tr.model th, tr.gradients th { font-weight: 600; }
tr.bad { background: var(--shade); } td.number { text-align: right; }
td.bars { min-width: 11rem; } td.bars div { position: relative; height: 1rem; }
td.bars i { position: absolute; left: 0; height: .4rem; border-radius: 0 2px 2px 0; }
td.bars i.ours { top: .05rem; background: var(--ours); }
td.bars i.theirs { top: .55rem; background: var(--theirs); }
td.bars i.limit { top: 0; height: 1rem; width: 2px; background: var(--limit); border-radius: 0; }
tr.bad i.ours { background: var(--bad); }
details { margin: 1rem 0; color: var(--quiet); } dt { font-weight: 600; } dd { margin: 0 0 .4rem; }
"""
