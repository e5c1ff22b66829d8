"""What a sweep varies: lists and ranges of settings, read from the command line."""

import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pipeline.settings import parse_value

Kind = Literal["uniform", "loguniform", "randint", "lograndint"]

LISTS = ("grid", "choice")
_CALL = re.compile(rf"^({'|'.join((*get_args(Kind), *LISTS))})\((.*)\)$", re.DOTALL)
MAX_CORNERS = 64  # of a space that is drawn from: each builds a model
SECTION = 0.382  # a point inside of a range that is seldom a whole number


@dataclass(frozen=True)
class Range:
    """Values drawn between two bounds, which are among them; `randint`, `lograndint`: whole numbers."""

    kind: Kind
    low: float
    high: float

    @property
    def whole(self) -> bool:
        return self.kind.endswith("randint")

    @property
    def log(self) -> bool:
        return self.kind.startswith("log")

    @property
    def samples(self) -> list[float]:
        """Both ends and a value between them."""
        inner = self.low + SECTION * (self.high - self.low)
        return [self.low, int(inner) if self.whole else inner, self.high]


@dataclass(frozen=True)
class Space:
    """Settings that are the same in all trials, lists, and ranges."""

    fixed: dict[str, Any] = field(default_factory=dict)
    lists: dict[str, list[Any]] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    drawn: bool = False  # it has a range or a choice(…), of which not every combination is tried

    @property
    def varied(self) -> list[str]:
        return [*self.lists, *self.ranges]

    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of the lists; ranges are left out."""
        return [dict(zip(self.lists, values, strict=True)) for values in itertools.product(*self.lists.values())]

    def described(self) -> dict[str, Any]:
        """As in `sweep.json`."""
        return {
            **{key: {"values": values} for key, values in self.lists.items()},
            **{key: vars(bounds) for key, bounds in self.ranges.items()},
        }

    def refuse_impossible(self, build: Callable[[dict[str, Any]], Any]) -> list[str]:
        """Builds what every combination gives, with the ends of every range and a value between; of a large space that
        is drawn from, some. Returns why some combinations cannot be trained.

        Raises:
            ValueError: a value that no trial could run with, whatever the others are.
        """
        possible: set[tuple[str, str]] = set()  # (setting, value)
        faults: dict[tuple[str, str], str] = {}
        reasons = []
        for corner in self._corners():
            names = {(key, repr(value)) for key, value in corner.items()}
            try:
                build(corner)
            except ValueError as error:
                reasons.append(str(error))
                faults |= dict.fromkeys(names - faults.keys(), reasons[-1])
            else:
                possible |= names
        for name, reason in faults.items():
            if name not in possible:
                raise ValueError(reason)
        return reasons

    def _corners(self) -> Iterator[dict[str, Any]]:
        corners = [
            combination | {key: bounds.samples[end] for key, bounds in self.ranges.items()}
            for combination in self.combinations()
            for end in (range(3) if self.ranges else (0,))
        ]
        few = self.drawn and len(corners) > MAX_CORNERS
        yield from random.Random(0).sample(corners, MAX_CORNERS) if few else corners


def parse_space(arguments: list[str]) -> Space:
    """["objective.temperature=0.1,0.5", "optimizer.learning_rate=loguniform(1e-4,1e-2)", "training.seed=1"] → Space.

    Lists: v1,v2,… or grid(v1,v2,…); choice(v1,v2,…) is drawn from. A comma outside brackets separates values:
    objective.projector_dims=[256,128],[512,64] are two.

    Raises:
        ValueError: no setting is varied, or a range is no range.
    """
    fixed: dict[str, Any] = {}
    lists: dict[str, list[Any]] = {}
    ranges: dict[str, Range] = {}
    drawn = False
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise ValueError(
                f"{argument!r} is no setting: write key=v1,v2,… or key=choice(v1,v2) or key=loguniform(low,high)"
            )
        if key in (*fixed, *lists, *ranges):
            raise ValueError(f"{key} is given twice: give it once")
        call = _CALL.match(text.strip())
        kind, inner = call.groups() if call else (None, text)
        values = [parse_value(part) for part in _split(inner)]
        if kind in get_args(Kind):
            ranges[key], drawn = _range(argument, kind, values), True
        elif kind or len(values) > 1:
            different = [value for place, value in enumerate(values) if value not in values[:place]]
            if len(different) < 2:
                raise ValueError(f"{argument!r} varies nothing: give two values or more, or {key}=value for all trials")
            lists[key], drawn = different, drawn or kind == "choice"
        else:
            fixed[key] = values[0]
    if not lists and not ranges:
        raise ValueError(
            "nothing varies: give at least one list, as objective.temperature=0.1,0.2,0.5, or a range, as "
            "optimizer.learning_rate=loguniform(1e-4,1e-2)"
        )
    for key in (*lists, *ranges):
        if key.startswith("cluster."):
            raise ValueError(f"{key} changes how fast a trial is, and nothing that it computes: give it one value")
        if key == "data.store":
            raise ValueError(
                "data.store varies, and scores on different images do not compare: sweep one store; its selections "
                "may vary (data.selection=default,diverse): all are judged on the images of the first"
            )
    return Space(fixed, lists, ranges, drawn)


def _range(argument: str, kind: Any, values: list[Any]) -> Range:
    if len(values) != 2 or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{argument!r}: the bounds of a range are numbers: {kind}(low,high)")
    bounds = Range(kind, *values)
    if bounds.whole and not all(isinstance(value, int) for value in values):
        raise ValueError(f"{argument!r}: {kind} draws whole numbers: give whole bounds, or use {kind[:-7]}uniform")
    if not bounds.low < bounds.high or (bounds.log and bounds.low <= 0):
        raise ValueError(f"{argument!r}: needs low < high, and low > 0 for {'log' + kind.removeprefix('log')}")
    return bounds


def _split(text: str) -> list[str]:
    """Parts between commas that stand outside brackets and quotes."""
    parts, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        if not quoted:
            depth += (character in "[({") - (character in "])}")
        if character == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
