"""How a number is written in tables, verdicts and on pages."""

from __future__ import annotations


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def loss(value: float) -> str:
    """A loss with three decimals."""
    return f"{value:.3f}"


def three_digits(value: float) -> str:
    """Three significant digits, plain where that is readable."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e7 else f"{value:.3g}"


def scientific(value: float) -> str:
    """Three significant digits with an exponent."""
    return f"{value:.2e}"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 42 s, 3 min 20 s, 5 h 4 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
