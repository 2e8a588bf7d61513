"""Numbers as text. A missing number gives an empty text."""

import math


def size(count: int) -> str:
    """Returns a count of bytes in kB or MB."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def percent(fraction: float | None) -> str:
    """Returns a fraction in percent, with one decimal."""
    return "" if fraction is None else f"{100 * fraction:.1f} %"


def number(value: float | None, sign: str = "") -> str:
    """Returns a whole number with all digits, another with four. With `sign` "+", positive ones get a sign."""
    if value is None:
        return ""
    return minus(f"{value:{sign},.0f}" if float(value).is_integer() else f"{value:{sign}.4g}")


def metric(value: float | None) -> str:
    """Returns a metric with four decimals, or with one if it is large."""
    if value is None:
        return ""
    return minus("NaN" if math.isnan(value) else f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}")


def delta(value: float | None, reference: float | None) -> str:
    """Returns the change from a reference in percent."""
    if value is None or not reference or math.isnan(value):
        return ""
    change = round(100 * (value / reference - 1))
    return minus(f"{change:+,d}\u00a0%") if change else "same"


def minus(text: str) -> str:
    """Replaces hyphens by minus signs."""
    return text.replace("-", "−")
