"""Checks that configs share: each refuses a wrong field by its name and value."""

import dataclasses
import typing


def require(name: str, value: object, holds: bool, allowed: str) -> None:
    """Refuse a field that does not hold, and say what is allowed."""
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def require_kinds(config: typing.Any) -> None:
    """Refuse a config with a word or None in a field that is a switch or a real number.

    A word such as `no` would count as true; one in a number's place fails somewhere, and does not say where.
    """
    for field in dataclasses.fields(config):
        kinds, value = typing.get_args(field.type) or (field.type,), getattr(config, field.name)
        if value is None and type(None) in kinds:
            continue
        if float in kinds and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{field.name} must be a number, got {value!r}")
        if bool in kinds and str not in kinds and not isinstance(value, bool):
            raise ValueError(f"{field.name} must be true or false, got {value!r}")


def require_whole(config: object, *names: str, at_least: int = 1, or_none: bool = False) -> None:
    """Refuse a config whose named fields are not whole numbers, or below the least."""
    for name in names:
        value = getattr(config, name)
        is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= at_least
        holds = is_whole or (or_none and value is None)
        require(name, value, holds, f"a whole number of at least {at_least}{', or None' if or_none else ''}")


def require_one_of(config: object, name: str, allowed: tuple[str, ...]) -> None:
    """Refuse a config whose named field is none of the allowed words."""
    value = getattr(config, name)
    if value not in allowed:
        words = f"{', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}"
        raise ValueError(f"{name} must be {words}, got {value!r}")
