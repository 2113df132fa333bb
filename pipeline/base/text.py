"""Values as people read them: numbers, ticks and names. Knows nothing of the pipeline."""

LONGEST = 120  # characters of a foreign name


def shorten(text: str, limit: int) -> str:
    """`text`, cut to `limit` characters with an ellipsis if it is longer."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def visible(text: str) -> str:
    """`text` out of a foreign file for a message: one line of at most LONGEST ASCII characters."""
    return shorten(text.encode("unicode_escape").decode("ascii"), LONGEST)


def number(value: float | None) -> str:
    """`value` with four significant digits or, from 1,000 on, as a whole number; "" for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 or isinstance(value, int) else f"{value:.4g}"


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def short_number(value: float, _position: int | None = None) -> str:
    """`value` in thousands, millions or billions, for example 1.2 M: a tick's text."""
    for size, suffix in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"
