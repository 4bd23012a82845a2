"""Sentences that sweeps answer with, put together from the levels of their factor."""

from collections.abc import Sequence

from sweeps.results import Level, differences


def ranking(levels: Sequence[Level], noun: str, among: Sequence[Level] | None = None) -> str:
    """The winner (in validation), how far its test accuracy is from the others', and whether chance explains it.

    Args:
        among: the levels to rank, where they are not all; the others tell as well how much seeds vary.
    """
    best, *others = levels if among is None else among
    name = _capitalised(f"{noun} {best.value}")
    if not others:
        return f"{name} has {_accuracy(best)} test accuracy, and nothing to be compared with."
    where = "" if best.test_mean >= max(other.test_mean for other in others) else " in validation"
    text = f"{name} is best{where}: {_accuracy(best)} test accuracy"
    second, last = others[0], others[-1]
    text += f", {distance(best, second)} {noun} {second.value}{doubt(levels, best, second)}"
    if last is not second:
        text += f" and {distance(best, last)} {noun} {last.value}{doubt(levels, best, last)}"
    return text + "."


def comparison(levels: Sequence[Level], value: str, other: str) -> str | None:
    """How far one level is above another, and whether chance explains it; None where one of them has no finalist."""
    found = {level.value: level for level in levels}
    if value not in found or other not in found:
        return None
    a, b = found[value], found[other]
    return f"{_capitalised(value)} is {distance(a, b)} {other}{doubt(levels, a, b)}."


def distance(level: Level, other: Level) -> str:
    """`1.2 points above`, in mean test accuracy."""
    points = 100 * (level.test_mean - other.test_mean)
    return f"{abs(points):.1f} points {'above' if points >= 0 else 'below'}"


def is_clear(levels: Sequence[Level], level: Level, other: Level) -> bool:
    """Whether the 95% interval of the distance leaves zero out; not where there is none: see `results.differences`."""
    found = next(one for one in differences(levels, other.value) if one.value == level.value)
    return found.low > 0 or found.high < 0


def by_one_seed(levels: Sequence[Level]) -> bool:
    """Whether no level has a second seed, so that the caveat goes for every distance and is told once, at the end."""
    return len(levels) > 1 and all(level.n == 1 for level in levels)


def doubt(levels: Sequence[Level], level: Level, other: Level) -> str:
    """A caveat where chance alone could explain this distance, and not every one: see `by_one_seed`."""
    if is_clear(levels, level, other) or by_one_seed(levels):
        return ""
    return f" (chance alone could explain it, n={min(level.n, other.n)})"


def _accuracy(level: Level) -> str:
    spread = f" ± {100 * level.test_std:.1f}" if level.n > 1 else ""
    return f"{100 * level.test_mean:.1f}{spread}%"


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
