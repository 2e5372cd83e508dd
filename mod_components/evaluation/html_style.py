"""The looks of an HTML report, and the script that sorts its table of cases."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --faint: #59616b; --line: #d9dde3;
  --accent: #1f5fa8; --warn: #7a4a00; --warn-page: #fff4dd; --warn-line: #e6b95c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12151a; --card: #1b2027; --ink: #e7eaee; --faint: #a3abb6; --line: #343b45;
    --accent: #8cbcf2; --warn: #ffd893; --warn-page: #33280f; --warn-line: #7d6227;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 50rem; }
a { color: var(--accent); }
.note { color: var(--faint); font-size: .875rem; }
.intended {
  display: inline-block; margin: 0 0 1rem; padding: .35rem .75rem; border-radius: .4rem;
  border: 1px solid var(--warn-line); background: var(--warn-page); color: var(--warn);
  font-weight: 600;
}
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; }
.facts dt { color: var(--faint); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.scroll {
  overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; margin: .5rem 0 1rem;
}
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .6rem .75rem .2rem; font-weight: 600; }
th, td { padding: .35rem .75rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; }
thead th { color: var(--faint); font-size: .875rem; border-bottom: 1px solid var(--line); }
tbody th, thead tr:first-child th:first-child { text-align: left; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
thead th[colspan] { text-align: center; }
.start { border-left: 1px solid var(--line); }
td small { display: block; color: var(--faint); font-size: .8rem; white-space: normal; }
tbody th { position: sticky; left: 0; background: var(--card); }
.name {
  display: inline-block; vertical-align: top; width: max-content; max-width: min(16rem, 36vw);
  white-space: normal; overflow-wrap: anywhere;
}
.cases tbody th { font-weight: 500; }
th button {
  all: unset; cursor: pointer; text-decoration: underline dotted; text-underline-offset: .2em;
}
th button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
th[aria-sort="ascending"] button::after { content: " \\2191"; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
details { margin: .5rem 0; }
summary { cursor: pointer; font-weight: 600; padding: .25rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
.plots figure, .case {
  background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem;
}
figcaption { font-weight: 600; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.case { margin: 0 0 1.25rem; }
.case img { border-radius: .3rem; background: #000; }
.case .scroll { border: 0; margin: .5rem 0 0; }
.case th, .case td { padding: .3rem .5rem; font-size: .875rem; }
.case thead th { white-space: normal; vertical-align: bottom; }
@media (max-width: 40rem) {
  body { padding: 1rem .6rem 3rem; font-size: 15px; }
  th, td { padding: .3rem .5rem; }
  .facts { grid-template-columns: 1fr; }
  .facts dd { margin: 0 0 .4rem; }
}
@media print {
  :root {
    color-scheme: light;
    --page: #fff; --card: #fff; --ink: #000; --faint: #444; --line: #bbb; --accent: #000;
    --warn: #000; --warn-page: #fff; --warn-line: #000;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2, .note { break-after: avoid; }
  figure, .case, tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  .plots { grid-template-columns: repeat(4, 1fr); gap: .4rem; }
  .plots figure { padding: .3rem; font-size: 8pt; }
  th, td, .case th, .case td { padding: .15rem .3rem; font-size: 8pt; }
  td small { font-size: 7pt; }
  .case img { max-height: 17cm; }
  th button { text-decoration: none; }
}
"""

SCRIPT = """\
for (const table of document.querySelectorAll("table.cases")) {
  const heads = [...table.querySelectorAll("th[data-column]")];
  const body = table.tBodies[0];
  const value = (row, column) => row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const x = parseFloat(a), y = parseFloat(b);
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
    return x - y;
  };
  for (const head of heads) {
    const column = Number(head.dataset.column);
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows];
      rows.sort((a, b) => {
        const x = value(a, column), y = value(b, column);
        if (column === 0) return down ? y.localeCompare(x) : x.localeCompare(y);
        const missing = isNaN(parseFloat(x)) || isNaN(parseFloat(y));
        return down && !missing ? compare(y, x) : compare(x, y);
      });
      body.append(...rows);
    });
  }
}
"""
