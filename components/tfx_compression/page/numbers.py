"""Numbers in words; nothing where there is none."""

import math


def size(of: int) -> str:
    """Bytes."""
    return f"{of / 1e6:.2f} MB" if of >= 1e6 else f"{of / 1e3:.1f} kB"


def percent(fraction: float | None) -> str:
    """To a tenth of a per cent."""
    return "" if fraction is None else f"{100 * fraction:.1f} %"


def number(value: float | None, sign: str = "") -> str:
    """A whole number in full, another to four digits; with `sign` `+`, positive ones have theirs."""
    if value is None:
        return ""
    return minus(f"{value:{sign},.0f}" if float(value).is_integer() else f"{value:{sign}.4g}")


def metric(value: float | None) -> str:
    """To four decimals."""
    if value is None:
        return ""
    return minus("NaN" if math.isnan(value) else f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}")


def delta(value: float | None, against: float | None) -> str:
    """How much more or less, in per cent."""
    if value is None or not against or math.isnan(value):
        return ""
    change = round(100 * (value / against - 1))
    return minus(f"{change:+,d}\u00a0%") if change else "same"


def minus(text: str) -> str:
    """With the sign for it instead of a hyphen."""
    return text.replace("-", "−")
