"""Schemas of configurations: types and ranges by key, checked in one place.

A schema maps keys to rules; a dotted key (``optim_conf.lr``) is a value in a group. A
rule takes a value, returns it converted, and raises ValueError with the expectation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from speechllm.utils.errors import UserError

Rule = Callable[[Any], Any]
Schema = Mapping[str, Rule]

#: YAML 1.1 reads ``6e-4``, without a point, as text.
_EXPONENT = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+")


def integer(least: int, most: int | None = None) -> Rule:
    """Return the rule of an integer in a range, limits included."""

    limits = (("at least", least), ("at most", most))
    expected = " and ".join(
        f"{text} {limit}" for text, limit in limits if limit is not None
    )

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"expected an integer, {expected}")
        found = int(value)
        if found < least or (most is not None and found > most):
            raise ValueError(expected)
        return found

    return check


def number(
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    infinite: bool = False,
) -> Rule:
    """Return the rule of a number in a range; text such as ``6e-4`` is converted.

    Args:
        least, most: limits, included.
        above, below: limits, excluded.
        infinite: accept infinity.
    """
    expected = _range(least, most, above, below)

    def check(value: Any) -> Any:
        if isinstance(value, str) and _EXPONENT.fullmatch(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"expected a number, {expected}")
        try:
            found = float(value)
        except OverflowError:  # an integer of more than 308 digits
            found = math.inf
        if math.isnan(found) or (math.isinf(found) and not infinite):
            raise ValueError(f"expected a finite number, {expected}")
        if (
            (least is not None and found < least)
            or (most is not None and found > most)
            or (above is not None and found <= above)
            or (below is not None and found >= below)
        ):
            raise ValueError(expected)
        return value

    return check


def boolean(value: Any) -> bool:
    """Check a truth value."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def choice(*names: str) -> Rule:
    """Return the rule of a name out of several."""

    def check(value: Any) -> Any:
        if value not in names or not isinstance(value, str):
            raise ValueError(f"one of {', '.join(names)}")
        return value

    return check


def optional(rule: Rule) -> Rule:
    """Return a rule that accepts null as well."""
    return lambda value: None if value is None else rule(value)


def either(first: Rule, second: Rule) -> Rule:
    """Return a rule that accepts what either of two rules accepts."""

    def check(value: Any) -> Any:
        try:
            return first(value)
        except ValueError as error:
            try:
                return second(value)
            except ValueError as other:
                raise ValueError(f"{error}; or {other}") from None

    return check


def list_of(rule: Rule, length: int | None = None) -> Rule:
    """Return the rule of a list whose items follow a rule."""

    def check(value: Any) -> list[Any]:
        if not isinstance(value, (list, tuple)) or len(value) != (
            len(value) if length is None else length
        ):
            count = "" if length is None else f" of {length} values"
            raise ValueError(f"expected a list{count}")
        return [rule(item) for item in value]

    return check


def mapping_of(rule: Rule) -> Rule:
    """Return the rule of a mapping of names to values that follow a rule."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError("expected a mapping of names to values")
        checked = {}
        for name, item in value.items():
            try:
                checked[name] = rule(item)
            except ValueError as error:
                raise ValueError(f"{name} is {item!r}: {error}") from None
        return checked

    return check


def finite(value: Any) -> Any:
    """Refuse NaN and infinity in a value of any type, at any depth.

    Text such as ``6e-4`` becomes a number.
    """
    if isinstance(value, Mapping):
        return mapping_of(finite)(value)
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


def group(value: Any) -> dict[str, Any] | None:
    """Check a group of options: null, or a mapping of names to finite values."""
    return None if value is None else mapping_of(finite)(value)


def text(value: Any) -> str:
    """Check a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("expected a text")
    return value


def check_options(
    options: Mapping[str, Any], schema: Schema, place: str
) -> dict[str, Any]:
    """Return options with the values that the schema converts.

    Keys that are not in the schema stay as they are.

    Args:
        options: names to values; groups are mappings of their own.
        schema: rules by key; groups come before their keys.
        place: file or command of the options, for the message.

    Raises:
        UserError: a value does not follow its rule; names place, key and value.
    """
    checked = _copy(options)
    for key, rule in schema.items():
        group, _, name = key.rpartition(".")
        values: Any = checked
        for part in group.split(".") if group else []:
            values = values.get(part) if isinstance(values, Mapping) else None
        if not isinstance(values, dict) or name not in values:
            continue
        try:
            values[name] = rule(values[name])
        except ValueError as error:
            raise UserError(f"{place}: {key} {values[name]!r}: {error}") from None
    return checked


def _copy(options: Mapping[str, Any]) -> dict[str, Any]:
    """Copy nested mappings, so that conversion leaves those of the caller alone."""
    return {
        key: _copy(value) if isinstance(value, Mapping) else value
        for key, value in options.items()
    }


def _range(
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> str:
    if least is not None and most is not None:
        return f"from {least} to {most}"
    parts = [
        f"{text} {limit}"
        for text, limit in (
            ("at least", least),
            ("at most", most),
            ("above", above),
            ("below", below),
        )
        if limit is not None
    ]
    return " and ".join(parts) or "not NaN or infinite"
