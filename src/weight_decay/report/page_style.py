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
