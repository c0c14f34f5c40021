"""The interactive part of the report: sliders for a run, and what weight decay will do to it. Works offline."""

from __future__ import annotations

from importlib.resources import files

ANCHOR = "advise"
INTRODUCTION = (
    "Describe a run and see what decay would do to it, before it is started: formulas and the study's own numbers, "
    "predicted and not measured. In the terminal the same is weight-decay advise."
)

CSS = """\
#advise-form { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .6rem 1.5rem; }
#advise-form label { display: grid; grid-template-columns: 1fr auto; gap: .1rem .5rem; font-size: .92rem; }
#advise-form input, #advise-form select { grid-column: 1 / -1; width: 100%; }
#advise-form output { font-variant-numeric: tabular-nums; color: var(--muted); }
#advise-charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem; }
#advise-charts svg { width: 100%; height: 9rem; background: var(--card); border: 1px solid var(--line); }
#advise-charts polyline, #advise-charts line { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke;
  stroke: var(--link); }
#advise-charts .none { stroke: var(--muted); stroke-dasharray: 4 3; }
#advise-charts .decay { stroke: var(--no); }
"""

_SLIDERS = (
    # name, label, least, most, start: powers of ten, but for the warm-up's percent
    ("parameters", "parameters", 5.0, 11.0, 8.09),
    ("samples", "training set: sequences, or images", 3.0, 10.0, 7.1),
    ("passes", "passes", 0.0, 3.0, 0.0),
    ("batch", "batch: sequences, or images", 0.0, 5.0, 2.4),
    ("lr", "learning rate η at its peak", -5.0, 0.0, -3.22),
    ("decay", "weight decay λ", -6.0, 2.0, -1.0),
    ("warmup", "warm-up", 0.0, 20.0, 1.0),
)
_CHOICES = (
    ("optimizer", "optimizer", (("adamw", "AdamW"), ("sgd", "SGD"))),
    ("shape", "schedule", (("cosine", "cosine"), ("linear", "linear"), ("constant", "constant"), ("drop", "a drop"))),
    ("weights", "weights stored in", (("float32", "float32"), ("bfloat16", "bfloat16"))),
)


def script() -> str:
    """The page's JavaScript, which predicts as `dynamics.py` does."""
    return files(__package__).joinpath("advise.js").read_text(encoding="utf-8")


def body() -> str:
    """HTML of the section: a form that script shows, a table of the answer, two charts and one step as arrows."""
    sliders = "".join(
        f'<label>{label}<output></output><input type="range" name="{name}" min="{low:g}" max="{high:g}" step="0.01" '
        f'value="{start:g}"></label>\n'
        for name, label, low, high, start in _SLIDERS
    )
    choices = "".join(
        f'<label>{label}<select name="{name}">'
        + "".join(f'<option value="{value}">{text}</option>' for value, text in options)
        + "</select></label>\n"
        for name, label, options in _CHOICES
    )
    charts = "".join(
        f'<figure><svg viewBox="0 0 100 40" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<polyline id="advise-{name}-none" class="none"></polyline><polyline id="advise-{name}-own"></polyline></svg>'
        f"<figcaption>{label} over the run, logarithmic; dashed: without decay</figcaption></figure>\n"
        for name, label in (("norm", "‖w‖"), ("rate", "effective learning rate η/‖w‖"))
    )
    return (
        f'<noscript><p class="caution">The sliders need JavaScript; <code>weight-decay advise</code> does not.</p>'
        f'</noscript>\n<form id="advise-form" hidden>\n{sliders}{choices}</form>\n'
        '<div class="scroll"><table><caption>What decay will do</caption><thead><tr><th>what</th><th>value</th>'
        '<th>why</th></tr></thead><tbody id="advise-lines"></tbody></table></div>\n'
        f'<div id="advise-charts" hidden>\n{charts}'
        '<figure><svg viewBox="0 0 100 40" role="img" aria-label="One step: update, decay and result">'
        '<line id="advise-result" class="none"></line><line x1="10" y1="35" x2="70" y2="35"></line>'
        '<line id="advise-update"></line><line id="advise-decay" class="decay"></line></svg>'
        "<figcaption>One step in equilibrium: weights (along the bottom), update (upwards), decay (back), result "
        '(dashed); <span id="advise-factor"></span></figcaption></figure>\n</div>\n'
    )
