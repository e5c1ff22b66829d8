"""What a sweep varies: lists and ranges of settings, read from the command line."""

import itertools
import re
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.experiment import Experiment, parse_value

_RANGE = re.compile(r"^(loguniform|uniform)\(([^,()]+),([^,()]+)\)$")


@dataclass(frozen=True)
class Range:
    """Values drawn between two bounds."""

    kind: Literal["uniform", "loguniform"]
    low: float
    high: float


@dataclass(frozen=True)
class Space:
    """Settings that are the same in all trials, lists of which every combination is tried, ranges that are searched."""

    fixed: dict[str, Any]
    choices: dict[str, list[Any]]
    ranges: dict[str, Range]

    @property
    def varied(self) -> list[str]:
        return [*self.choices, *self.ranges]

    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of the lists; ranges are left out."""
        return [dict(zip(self.choices, values, strict=True)) for values in itertools.product(*self.choices.values())]

    def check(self, recipe: Experiment) -> None:
        """Builds the experiment of every combination, with both ends of every range.

        Raises:
            ValueError: a setting or a value that no trial could run with.
        """
        for combination in self.combinations():
            for end in ("low", "high"):
                ends = {key: getattr(bounds, end) for key, bounds in self.ranges.items()}
                recipe.override({**self.fixed, **combination, **ends}).check_model()


def parse_space(arguments: list[str]) -> Space:
    """["objective.temperature=0.1,0.5", "optimizer.learning_rate=loguniform(1e-4,1e-2)", "training.seed=1"] → Space.

    A comma outside brackets separates choices: objective.projector_dims=[256,128],[512,64] are two.

    Raises:
        ValueError: no setting is varied, or a range is no range.
    """
    space = Space({}, {}, {})
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise ValueError(f"{argument!r} is no setting: write key=v1,v2,… or key=loguniform(low,high)")
        matched = _RANGE.match(text)
        values = [parse_value(part) for part in _split(text)]
        if matched:
            space.ranges[key] = _range(argument, *matched.groups())
        elif len(values) > 1:
            space.choices[key] = values
        else:
            space.fixed[key] = values[0]
    if not space.varied:
        raise ValueError(
            "nothing varies: give at least one list, as objective.temperature=0.1,0.2,0.5, or a range, as "
            "optimizer.learning_rate=loguniform(1e-4,1e-2)"
        )
    return space


def _range(argument: str, kind: str, low: str, high: str) -> Range:
    try:
        bounds = Range(kind, float(low), float(high))  # type: ignore[arg-type]
    except ValueError:
        raise ValueError(f"{argument!r}: the bounds of a range are numbers") from None
    if not bounds.low < bounds.high or (kind == "loguniform" and bounds.low <= 0):
        raise ValueError(f"{argument!r}: needs low < high, and low > 0 for loguniform")
    return bounds


def _split(text: str) -> list[str]:
    """Parts between commas that stand outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[({") - (character in "])}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
