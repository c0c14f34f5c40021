"""The look of the HTML page: readable on a phone and in the dark, printable, usable without script."""

CSS = """\
:root { --ink: #1f2328; --muted: #59636e; --line: #d9dee3; --ground: #fbfbfa; --card: #ffffff;
  --yes: #00664a; --yes-ground: #d9f2e8; --no: #8f3900; --no-ground: #fde8d7; --unknown-ground: #e9ecef;
  --link: #005a8c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --muted: #9aa5b1; --line: #2c333b;
  --ground: #0e1114; --card: #14181d; --yes: #7fe0bd; --yes-ground: #0d3a2c; --no: #ffb786;
  --no-ground: #472408;
  --unknown-ground: #2c333b; --link: #6dbbec; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2.5rem) 3rem; max-width: 70rem; color: var(--ink);
  background: var(--ground); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
header { padding: clamp(1.5rem, 5vw, 3rem) 0 1rem; border-bottom: 1px solid var(--line);
  margin-bottom: 1.5rem; }
h1 { margin: 0 0 .5rem; font-size: clamp(1.7rem, 5vw, 2.6rem); line-height: 1.15; letter-spacing: -.02em; }
h2 { margin: 2.5rem 0 .25rem; font-size: clamp(1.3rem, 3.5vw, 1.7rem); letter-spacing: -.01em; }
nav a { display: inline-block; margin-right: 1.25rem; padding: .3rem 0; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 4px; }
.introduction { max-width: 46rem; color: var(--muted); margin-top: 0; }
.findings { list-style: none; margin: 1rem 0; padding: 0; display: grid; gap: .5rem; }
.findings li { display: grid; grid-template-columns: 6.2rem 1fr; gap: .75rem; align-items: start; }
.verdict { font-size: .85rem; font-weight: 600; text-align: center; border-radius: 1rem; padding: .1rem .5rem;
  margin-top: .1rem; background: var(--unknown-ground); }
.yes .verdict { color: var(--yes); background: var(--yes-ground); }
.no .verdict { color: var(--no); background: var(--no-ground); }
.findings strong { font-weight: 600; }
.numbers { color: var(--muted); font-variant-numeric: tabular-nums; }
.caution { color: var(--muted); font-size: .9rem; margin: .5rem 0 1rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .75rem 1rem .25rem; font-weight: 600; }
caption span { display: block; font-weight: 400; font-size: .85rem; color: var(--muted); }
th, td { padding: .5rem .9rem; text-align: right; }
td { white-space: nowrap; }
thead th { vertical-align: bottom; font-weight: 500; font-size: .85rem; color: var(--muted);
  min-width: 6.5rem; line-height: 1.3; }
tbody tr { border-top: 1px solid var(--line); }
th[scope=row], thead th:first-child { text-align: left; white-space: nowrap; position: sticky; left: 0;
  background: var(--card); }
th[scope=row] { font-weight: 500; }
figure { margin: 1.25rem 0 0; padding: clamp(.5rem, 2vw, 1.25rem); background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; position: relative; }
figure img { display: block; width: 100%; height: auto; border-radius: 4px; }
figcaption { margin-top: .75rem; font-size: .95rem; max-width: 52rem; }
figure label { display: block; cursor: zoom-in; }
.enlarge { position: absolute; opacity: 0; pointer-events: none; }
.enlarge:focus-visible + label { outline: 3px solid var(--link); outline-offset: 4px; border-radius: 4px; }
.enlarge:checked + label { position: fixed; inset: 0; z-index: 9; overflow: auto; padding: 1rem;
  display: grid; background: var(--card); cursor: zoom-out; }
.enlarge:checked + label img { width: max(min(96vw, 124vh), 52rem); margin: auto; }
details { margin-top: .75rem; font-size: .92rem; }
summary { cursor: pointer; color: var(--link); padding: .25rem 0; width: fit-content; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; margin: .5rem 0 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--muted);
  font-size: .9rem; }
@media (max-width: 34rem) { .findings li { grid-template-columns: 1fr; gap: .15rem; }
  .verdict { justify-self: start; padding: 0 .7rem; } th, td { padding: .4rem .6rem; } }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print { body { max-width: none; } figure, .scroll { break-inside: avoid; } nav { display: none; } }
"""

SCRIPT = """\
addEventListener('keydown', event => {
  if (event.key !== 'Escape') return;
  document.querySelectorAll('.enlarge:checked').forEach(box => { box.checked = false; });
});
"""

CLAIMS_CSS = """\
body { max-width: 80rem; }
.counts { font-weight: 600; font-size: 1.1rem; margin: 1rem 0 .5rem; }
.filter { border: 0; margin: 0 0 1rem; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem;
  font-size: .92rem; }
.filter legend { float: left; color: var(--muted); padding: .2rem 0; margin-right: .5rem; }
.filter label { white-space: nowrap; cursor: pointer; padding: .2rem 0; }
.filter input { accent-color: var(--link); }
.claims:has(#show-holds:checked) tbody tr:not(.holds), .claims:has(#show-fails:checked) tbody tr:not(.fails),
.claims:has(#show-inconclusive:checked) tbody tr:not(.inconclusive),
.claims:has(#show-not-run:checked) tbody tr:not(.not-run) { display: none; }
.claims thead th { min-width: 0; padding: .5rem .25rem; text-align: left; position: static; white-space: normal;
  background: none; }
.claims th button { all: unset; display: inline-block; padding: .2rem .35rem; border-radius: 4px; cursor: pointer; }
.claims th button:disabled { cursor: auto; }
.claims th button:enabled:hover { background: var(--unknown-ground); }
.claims th button:focus-visible { outline: 3px solid var(--link); }
.claims th[aria-sort=ascending] button::after { content: " \\25B2"; }
.claims th[aria-sort=descending] button::after { content: " \\25BC"; }
.claims th[aria-sort=ascending] button, .claims th[aria-sort=descending] button { color: var(--ink); }
.claims td, .claims tbody th { text-align: left; vertical-align: top; padding: .6rem .5rem; white-space: normal; }
.claims tbody th { position: static; font-weight: 500; min-width: 16rem; line-height: 1.4; }
.claims .verdict { display: inline-block; white-space: nowrap; padding: .1rem .7rem; margin: 0; }
.claims .mean { font-weight: 600; }
.claims .mean, .claims .bounds { display: block; white-space: nowrap; }
.claims .bounds, .claims .power, .claims .stamp, .dash { color: var(--muted); }
.claims .power { min-width: 7rem; }
.claims details { margin: .25rem 0 0; font-weight: 400; }
.claims .scale { border-top: 1px solid var(--line); padding: .6rem 0; }
.claims .scale p { margin: .4rem 0; }
.claims .scale .mean, .claims .scale .bounds { display: inline; }
.claims .stamp { font-size: .85rem; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media (min-width: 76.01rem) { .claims .at { text-align: center; width: 1%; } .claims .criterion { min-width: 6rem; } }
@media (max-width: 76rem) {
  .claims .scroll { overflow: visible; background: none; border: 0; }
  .claims table, .claims tbody { display: block; }
  .claims thead, .claims thead tr { display: flex; flex-wrap: wrap; align-items: baseline; }
  .claims thead { margin-bottom: .6rem; }
  .claims thead::before { content: "Sort by"; font-size: .85rem; color: var(--muted); padding-right: .35rem; }
  .claims:has(th button:disabled) thead { display: none; }
  .claims thead th { padding: 0; }
  .claims th button { padding: .4rem .5rem; text-decoration: underline; text-underline-offset: 3px; }
  .claims tbody tr { display: grid; grid-template-columns: repeat(3, auto) 1fr; gap: .3rem 1.2rem;
    background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .9rem; margin-bottom: .9rem; }
  .claims td, .claims tbody th { padding: 0; grid-column: 1 / -1; }
  .claims td { display: grid; grid-template-columns: 6.5rem 1fr; font-size: .92rem; }
  .claims td::before { content: attr(data-label); color: var(--muted); font-size: .85rem; }
  .claims td:empty { display: none; }
  .claims tbody th { min-width: 0; font-size: 1rem; padding: .3rem 0; }
  .claims td.at { grid-column: auto; display: block; }
  .claims td.at::before { display: block; line-height: 1.3; }
  .claims td .mean, .claims td .bounds { display: inline; }
}
@media (max-width: 34rem) { .claims .verdict { padding: 0 .4rem; font-size: .75rem; } .counts { font-size: 1rem; }
  .claims tbody tr { column-gap: .7rem; } dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@media print { .filter { display: none; } }
"""

SORT_SCRIPT = """\
(() => {
  const body = document.querySelector('.claims tbody');
  if (!body) return;
  const rows = [...body.rows], heads = [...document.querySelectorAll('.claims thead th')];
  const next = { none: 'ascending', ascending: 'descending', descending: 'none' };
  const sign = { none: 0, ascending: 1, descending: -1 };
  const compare = (one, other, way) => {
    if (one === undefined || other === undefined) return (one === undefined) - (other === undefined);
    return way * (Number(one) - Number(other));
  };
  heads.forEach((head, column) => {
    const button = head.querySelector('button'), rank = row => row.cells[column].dataset.rank;
    button.disabled = false;
    button.addEventListener('click', () => {
      const order = next[head.getAttribute('aria-sort')], way = sign[order];
      heads.forEach(other => other.setAttribute('aria-sort', other === head ? order : 'none'));
      body.append(...(way ? [...rows].sort((a, b) => compare(rank(a), rank(b), way)) : rows));
    });
  });
})();
"""
