"""Settings as text: read from a command line, listed with their meaning, and what is wrong with them in words."""

import difflib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ssl_models.config import Config
from ssl_models.objectives import OBJECTIVES


def explain(error: ValidationError, command: str = "feral show RECIPE") -> str:
    """One line a fault: key=value: what is allowed; and the command that lists the settings."""
    lines = []
    for fault in error.errors():
        if fault["type"] == "value_error" and isinstance(fault["input"], dict | Config):
            lines.append(fault["msg"].removeprefix("Value error, "))  # a cross-check, which says all itself
            continue
        key = ".".join(str(part) for part in fault["loc"] if part not in OBJECTIVES)
        message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        wanted = ":" if message == fault["msg"] else f"={fault['input']!r}: should be"
        lines.append(f"{key}{wanted} {message}")
    return "; ".join(lines) + f" (`{command}` lists every setting)"


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """["objective.temperature=0.2", …] → values; a value is JSON where it parses, else text.

    Raises:
        ValueError: an argument without "=".
    """
    changes: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise ValueError(f"{argument!r} is no setting: write key=value, for example training.images_seen=100000")
        changes[key] = parse_value(text)
    return changes


def parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def settings(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested data as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat |= settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def unknown_setting(key: str, content: Mapping[str, Any]) -> str:
    """What to say of a key that is no setting of `content`."""
    known = list(settings(content))
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in known}
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    leaf = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(by_leaf), n=1, cutoff=0.7)
    guess = close[0] if close else by_leaf[leaf[0]] if leaf else None
    hint = f"did you mean {guess}?" if guess else f"groups are {', '.join(content)}"
    return f"{key}: no such setting; {hint} (`feral show RECIPE` lists every setting)"


def describe(config: Config, prefix: str = "") -> list[tuple[str, Any, str]]:
    """Every setting as (dotted key, value, meaning), in the order of declaration."""
    rows: list[tuple[str, Any, str]] = []
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            rows += describe(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value, info.description or ""))
    return rows
