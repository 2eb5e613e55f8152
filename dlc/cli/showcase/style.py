"""The style sheet of the demo's page: light and dark, from a phone to a wide screen."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #ffffff; --ink: #1d2126;
  --quiet: #666e7a; --line: #e2e3e6; --a: #2563eb; --b: #e0662b; --c: #159570; --d: #9446c9;
  --good: #15803d; --bad: #c62828; --code: #f2f2ef; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1d2025; --ink: #e7e9ec;
  --quiet: #98a1ae; --line: #32363d; --a: #6ea8fe; --b: #f4945f; --c: #45c69b; --d: #c792ea;
  --good: #4cc97a; --bad: #ff7b72; --code: #15171b; } img.ink { filter: invert(1); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: clamp(1.7rem, 5vw, 2.4rem); line-height: 1.15; margin: 1rem 0 .4rem;
  letter-spacing: -.02em; }
h2 { font-size: 1.35rem; margin: 3rem 0 .3rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
p { margin: .3rem 0 .9rem; max-width: 46rem; } a { color: var(--a); }
.lead { font-size: 1.1rem; color: var(--quiet); } .quiet, figcaption { color: var(--quiet); }
figcaption { font-size: .875rem; margin-top: .4rem; } figure { margin: 0; }
.good { color: var(--good); } .bad { color: var(--bad); }
.grid2 { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1rem; margin: 1rem 0; min-width: 0; } .grid2 .card { margin: 0; }
.tiles { display: grid; gap: .75rem; margin: 1.5rem 0;
  grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.2; letter-spacing: -.02em; }
.tile span { color: var(--quiet); font-size: .875rem; }
.strip { display: flex; flex-wrap: wrap; gap: .5rem; }
.strip figure { text-align: center; }
.strip figcaption { margin: 0; font-size: .8rem; line-height: 1.25; }
img.ink { image-rendering: pixelated; width: 56px; height: 56px; border-radius: 6px; }
.maps img.ink, .filter { width: 72px; height: 72px; display: block; margin: 0 auto .25rem;
  border-radius: 6px; }
.filter { background: var(--code); } .plus { fill: var(--a); } .minus { fill: var(--b); }
.chart { width: 100%; height: auto; display: block; font-size: 11px; }
.chart text, .matrix text { fill: var(--quiet); } .chart .label { fill: var(--ink); }
.mid { text-anchor: middle; } .end { text-anchor: end; }
.grid { stroke: var(--line); stroke-width: 1; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.line.faint { stroke-dasharray: 4 3; stroke-width: 1.3; }
.line.a, .mean.a { stroke: var(--a); } .line.b, .mean.b { stroke: var(--b); }
.line.c, .mean.c { stroke: var(--c); } .line.d, .mean.d { stroke: var(--d); }
.mean { stroke-width: 2.5; fill: none; } .dot { fill-opacity: .55; stroke: var(--card); }
.dot.a { fill: var(--a); } .dot.b { fill: var(--b); } .dot.c { fill: var(--c); }
.dot.d { fill: var(--d); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 0 0 .4rem; font-size: .875rem; }
.key::before { content: ""; display: inline-block; width: .8em; height: .8em; border-radius: 3px;
  margin-right: .4em; vertical-align: -.05em; background: var(--key); }
.key.faint::before { height: .2em; vertical-align: .2em; border-radius: 0; background:
  linear-gradient(90deg, var(--key) 38%, transparent 38% 62%, var(--key) 62%); }
.key.a { --key: var(--a); } .key.b { --key: var(--b); } .key.c { --key: var(--c); }
.key.d { --key: var(--d); }
.matrix { width: 100%; max-width: 27rem; height: auto; display: block; margin: 0 auto;
  font-size: .36px; text-anchor: middle; }
.matrix text { fill: var(--ink); } .matrix text.quiet { fill: var(--quiet); }
.matrix text.on { fill: #fff; } .cell.right { fill: var(--a); } .cell.wrong { fill: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top; }
thead th { color: var(--quiet); font-weight: 500; font-size: .82rem; }
tbody tr:last-child > * { border-bottom: 0; } tbody th { font-weight: 500; }
td.number, th.number { text-align: right; } td.words { white-space: normal; min-width: 13rem; }
code, pre, .code { font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono",
  monospace; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 8px; padding: .8rem;
  overflow-x: auto; margin: .5rem 0; }
.bar { display: block; width: 7rem; height: .55rem; margin-top: .45rem; border-radius: 3px;
  background: var(--line); } .bar i { display: block; height: 100%; border-radius: 3px;
  background: var(--c); }
.race { display: grid; grid-template-columns: 5rem 1fr; gap: .25rem .75rem; align-items: center;
  margin: .2rem 0 1rem; font-size: .9rem; font-variant-numeric: tabular-nums; }
.race div { display: flex; align-items: center; gap: .5rem; white-space: nowrap; }
.race i { height: 1rem; min-width: 3px; border-radius: 3px; flex: none; background: var(--b); }
.race i.ours { background: var(--a); }
.drawing { overflow: auto; max-height: 40rem; background: #fff; border-radius: 8px;
  border: 1px solid var(--line); text-align: center; }
.drawing svg { max-width: 100%; height: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--a); }
footer { margin-top: 4rem; color: var(--quiet); font-size: .875rem; }
"""
