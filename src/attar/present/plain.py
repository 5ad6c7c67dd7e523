"""Plain values as text: numbers, durations, settings, and text from strangers."""

from __future__ import annotations

import json
import math
import re
from typing import Any

# Terminals obey control characters and browsers refuse some of them; models may write any.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def clean(text: object) -> str:
    """The text without the characters that a terminal or a browser would obey."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text).replace("\r\n", "\n"))


def significant(value: float, digits: int) -> str:
    """The number with so many significant digits, never in groups, with a true minus."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.{min(digits, 3) - 1}e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    # Rounding first: 9.999 has one digit more once it is 10.00.
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{value:.{max(0, decimals)}f}"


def ratio_text(value: float) -> str:
    """A ratio in three digits: 3.20, 0.313, 12.4."""
    return significant(value, 3)


def scaled(value: float, units: tuple[str, ...], gap: str = " ") -> str:
    """The number in the largest of `units` that leaves at least 1 before the point."""
    power = 0
    while power < len(units) - 1 and abs(value) >= 999.5:
        value, power = value / 1000, power + 1
    digits = significant(value, 3) if power else f"{value:.0f}"
    return f"{digits}{gap}{units[power]}".rstrip()


def bytes_text(value: float) -> str:
    """Bytes in decimal units: 93.1 MB, 1.08 GB."""
    if not math.isfinite(value):
        return significant(value, 3)
    return scaled(value, ("B", "KB", "MB", "GB", "TB"))


def count_text(value: float) -> str:
    """A count of parameters: 134.5 M, 1.24 B."""
    if not math.isfinite(value):
        return significant(value, 3)
    power = (value >= 999.5) + (value >= 999.95e3) + (value >= 999.95e6)
    digits = f"{value:.0f}" if power == 0 else significant(value / 1000**power, 4)
    return f"{digits} {('', 'K', 'M', 'B')[power]}".rstrip()


def duration(seconds: float) -> str:
    """A time to read: 0.4 s, 42 s, 3 min 20 s, 1 h 05 min."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def value_text(value: Any) -> str:
    """A setting or a note on one line, as a person would write it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e5 else significant(value, 4)
    if isinstance(value, list | tuple) and not any(isinstance(x, dict | list) for x in value):
        return ", ".join(value_text(item) for item in value) or "–"
    if isinstance(value, dict | list | tuple):
        text = json.dumps(value, ensure_ascii=False, default=str)
        return clean(re.sub(r'[{}"]', "", text)) or "–"
    return clean(value)


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, named by dotted paths."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result
