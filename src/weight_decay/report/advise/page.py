"""The interactive part of the report: sliders for a run, and what weight decay will do to it. Works offline."""

from __future__ import annotations

from markupsafe import Markup

from weight_decay.report.page.templates import render

INTRODUCTION = (
    "Describe a run and see what decay would do to it, before it is started: formulas and the study's own numbers, "
    "predicted and not measured. In the terminal the same is weight-decay advise."
)

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


def body() -> Markup:
    """The section, whose script (advise.js) predicts as `dynamics.py` does."""
    return render("advise.html", sliders=_SLIDERS, choices=_CHOICES)
