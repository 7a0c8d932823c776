"""One fault of a config as a message: the key, what was expected there, and what was found."""

from __future__ import annotations

from typing import Any

from seghiero_core.hierarchy.values import short_repr
from seghiero_core.hierarchy.yaml_reader import Key, dotted

Fault = tuple[Key, str]
"""The key that is wrong, to find its line, and the message, which begins with the key."""

_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping",
    "path_type": "a path",
    "string_too_short": "a string that is not empty",
    "string_type": "a string",
    "tuple_type": "a list",
}
"""What was expected, by the type of pydantic's error."""


def fault_at(key: Key, text: str) -> Fault:
    """Make the fault of a key.

    Args:
        key: The key that is wrong.
        text: What is wrong with it.

    Returns:
        The key and the whole message.
    """
    return key, f"{dotted(key)}: {text}"


def expectation(error: Any) -> str:
    """Say what was expected and what was found.

    Args:
        error: pydantic's description of an error.

    Returns:
        A sentence.
    """
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":  # raised by a validator, which says both
        return f"{context['error']}."
    if kind == "literal_error":
        expected = context["expected"]
    elif kind == "greater_than":
        expected = _at_least_above(context["gt"])
    elif kind == "greater_than_equal":
        expected = _at_least(context["ge"])
    elif kind == "less_than":
        expected = f"a number below {context['lt']:g}"
    elif kind == "less_than_equal":
        expected = f"a number of at most {context['le']:.10g}"
    elif kind == "list_type" and isinstance(error["input"], str):
        is_one = len(error["input"].split()) == 1 or "," in error["input"]
        advice = f"write [{error['input']}]" if is_one else "put it in brackets, with commas between the items"
        return f"expected a list, found {short_repr(error['input'])}; {advice}."
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind]
    else:  # a rarer kind, from the annotation of a component's option
        return f"{error['msg'].replace('Input should be', 'expected')}, found {short_repr(error['input'])}."
    return f"expected {expected}, found {short_repr(error['input'])}."


def _at_least_above(limit: float) -> str:
    return f"a whole number from {limit + 1}" if isinstance(limit, int) else f"a number above {limit:g}"


def _at_least(limit: float) -> str:
    return f"a whole number from {limit}" if isinstance(limit, int) else f"a number of at least {limit:g}"
