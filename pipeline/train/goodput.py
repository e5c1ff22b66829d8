"""Where the wall-clock of a run went: every second of it in exactly one bucket.

Goodput is the time of the steps that count over the wall-clock. The buckets follow the taxonomy of Google's
ml-goodput-measurement, with fewer of them. What a step was worth is known only at the end: its time is lost when a
later attempt does it again. So all is computed from the record (`record.py`), nothing is counted live.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from math import inf

import numpy as np

from pipeline.train.record import Rows, surviving

BUCKETS = {
    "step": "training steps that count",
    "data wait": "these steps waiting for their batch",
    "checkpoint": "standing still between steps, to save and to log",
    "evaluation": "judging the encoder",
    "start-up": "processes, imports, building, restoring; and shutting down",
    "lost work": "steps that were done again or came to nothing, and noticing so",
    "idle": "no command was at work",
}
# What a piece of evidence says of its seconds, weakest first: where two overlap the later one holds.
_CLAIMS = {
    "at work": "start-up",
    "between rows": "checkpoint",
    "after a death": "lost work",
    "evaluation": "evaluation",
    "superseded row": "lost work",
    "row": "step",
    "waiting": "data wait",
    "saving": "checkpoint",
}
_CAUSES = {
    "nonfinite": "a value was not finite",
    "preempted": "preempted",
    "stopping": "asked to stop",
}
_IN_PEACE = ("preempted", "stopping")  # saved before they left: nothing is lost


Claim = tuple[str, float, float]  # what, from, to (Unix seconds)


@dataclass(frozen=True)
class AttemptSummary:
    """One start of the workers."""

    number: int
    began: float  # seconds since the run began
    restored_step: int
    reached_step: int  # of its last row
    workers: int | None
    ended: str  # in words
    interrupted: bool
    steps_redone: int  # after it
    recovery_seconds: float | None  # from the last row before this attempt to its first interval, less idle time


@dataclass(frozen=True)
class Goodput:
    wall_seconds: float
    seconds: dict[str, float]  # by bucket, all of BUCKETS; they sum to the wall-clock
    commands: int
    attempts: tuple[AttemptSummary, ...]

    @property
    def share(self) -> float:
        """Of the wall-clock, in [0, 1]: the steps that count, without their waiting for data."""
        return self.seconds["step"] / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def interruptions(self) -> int:
        return sum(attempt.interrupted for attempt in self.attempts)

    @property
    def steps_redone(self) -> int:
        return sum(attempt.steps_redone for attempt in self.attempts)


def goodput(events: Rows, rows: Rows) -> Goodput:
    """Splits the wall-clock from the first `command` to the last sign of life.

    Overlapping or disordered evidence (a clock that was set back, workers that outlived their group) is allowed: each
    second goes to the strongest claim on it, and one that nobody claims is idle.

    Args:
        events: of `read_events`.
        rows: of `read_all_metrics`, those of redone steps too.

    Raises:
        ValueError: there are no events.
    """
    if not events:
        raise ValueError("the run has no events.jsonl: the version that trained it did not note where its time went")
    commands = _commands(events, [row for row in rows if "attempt" in row])
    begin = commands[0].begin
    end = max(command.last_sign for command in commands)
    claims = sorted(_claims(rows, commands), key=lambda claim: list(_CLAIMS).index(claim[0]))
    spans = np.array([span for _, *span in claims]).clip(begin, end) - begin  # (claims, 2)
    edges = np.unique([0.0, end - begin, *spans.flat])
    names = list(BUCKETS)
    bucket = np.full(len(edges) - 1, names.index("idle"))  # of the time between two edges
    for (kind, *_), (first, last) in zip(claims, np.searchsorted(edges, spans), strict=True):
        bucket[first:last] = names.index(_CLAIMS[kind])  # nothing, where a clock ran backwards
    return Goodput(
        wall_seconds=end - begin,
        seconds=dict(zip(names, np.bincount(bucket, np.diff(edges), len(names)).tolist(), strict=True)),
        commands=len(commands),
        attempts=tuple(_summaries(commands)),
    )


def goodput_line(goodput: Goodput) -> str:
    """As in: 93 % of 12 min 04 s went into steps that count; 4 % start-up, 3 % lost work (1 interruption, 12 steps
    done again)."""
    wall = goodput.wall_seconds or 1.0
    rest = sorted(((seconds / wall, name) for name, seconds in goodput.seconds.items() if name != "step"), reverse=True)
    words = [f"{percent(share)} {name}" for share, name in rest if share >= 0.005]
    faults = [
        f"{count} {what}{'s' if count > 1 else ''}{again}"
        for count, what, again in (
            (goodput.interruptions, "interruption", ""),
            (goodput.steps_redone, "step", " done again"),
        )
        if count
    ]
    line = f"{percent(goodput.share)} of {duration(goodput.wall_seconds)} went into steps that count"
    return line + (f"; {', '.join(words)}" if words else "") + (f" ({', '.join(faults)})" if faults else "")


def percent(share: float) -> str:
    """Whole percent; "< 1 %" for a little, and 99.6 % is not rounded to all."""
    whole = round(100 * share)
    if whole == 0 < share:
        return "< 1 %"
    return f"{100 * share:.1f} %" if whole == 100 and share < 0.9995 else f"{whole} %"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


# ---- the record, ordered -------------------------------------------------------------------------------------------


@dataclass
class _Attempt:
    number: int
    began: float  # Unix seconds, as all times here
    worked_until: float  # its last row; before the first, when its stream started
    restored_step: int
    workers: int | None = None
    rows: Rows = field(default_factory=list)
    cause: str = ""  # the event that says why it ended

    @property
    def reached_step(self) -> int:
        return max((row["step"] for row in self.rows), default=self.restored_step)


@dataclass
class _Command:
    begin: float
    last_sign: float
    attempts: list[_Attempt] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    fit_ended: bool = False  # since its last attempt
    evaluated: bool = False
    code: int | None = None  # none: no sign of an end

    @property
    def trained(self) -> bool:
        """Whether its training reached the last step: a command that fails after it has begun to evaluate, too."""
        return self.fit_ended and (self.evaluated or not self.code)


def _commands(events: Rows, rows: Rows) -> list[_Command]:
    """The commands with their attempts, told apart by the order of writing, which no clock disturbs."""
    commands: list[_Command] = []
    attempts: dict[int, _Attempt] = {}
    evaluating: float | None = None
    for event in events:
        kind, time = event["event"], event["time"]
        if kind == "command" or not commands:
            commands.append(_Command(time, time))
            evaluating = None
        command, sign = commands[-1], time + event.get("blocked_seconds", 0.0)
        command.last_sign = max(command.last_sign, sign)
        if kind == "attempt":
            began = event.get("began", time - event.get("restore_seconds", 0.0))
            attempt = _Attempt(event["attempt"], began, time, event["step"], event.get("world_size"))
            attempts[attempt.number] = attempt
            command.attempts.append(attempt)
            command.fit_ended = False
        elif kind == "checkpoint":
            command.claims.append(("saving", time, sign))
        elif kind in _CAUSES and event["attempt"] in attempts:
            attempts[event["attempt"]].cause = kind
        elif kind == "fit_ended":
            command.fit_ended = True
        elif kind == "evaluate":
            evaluating, command.evaluated = time, True
        if kind in ("evaluated", "end") and evaluating is not None:
            command.claims.append(("evaluation", evaluating, time))
            evaluating = None
        if kind == "end":
            command.code = event["code"]
    for row in rows:
        number = row["attempt"]
        if number not in attempts:  # its event could not be written
            attempts[number] = _Attempt(number, row["began"], row["began"], row["restored_step"])
            earlier = [command for command in commands if command.begin <= row["began"]]
            (earlier[-1] if earlier else commands[0]).attempts.append(attempts[number])
        attempts[number].rows.append(row)
    for command in commands:
        command.attempts.sort(key=_number)
        for attempt in command.attempts:
            attempt.worked_until = max((row["time"] for row in attempt.rows), default=attempt.worked_until)
            command.last_sign = max(command.last_sign, attempt.worked_until)
    return commands


def _number(attempt: _Attempt) -> int:
    return attempt.number


def _claims(rows: Rows, commands: list[_Command]) -> Iterator[Claim]:
    newest = max((attempt for command in commands for attempt in command.attempts), key=_number, default=None)
    limit = newest.restored_step if newest and not newest.rows else inf  # it will do again what comes after
    counted = {id(row) for row in surviving(rows) if row["step"] <= limit}
    for command in commands:
        yield "at work", command.begin, command.last_sign
        yield from command.claims
        for attempt, after in zip_longest(command.attempts, command.attempts[1:]):
            for row in attempt.rows:
                yield "row" if id(row) in counted else "superseded row", row["began"], row["time"]
                if id(row) in counted:
                    yield "waiting", row["began"], min(row["began"] + row["data_wait_seconds"], row["time"])
            for row, following in pairwise(attempt.rows):
                yield "between rows", row["time"], following["began"]
            if attempt.cause not in _IN_PEACE and (after or not command.trained):
                yield "after a death", attempt.worked_until, after.began if after else command.last_sign


def _summaries(commands: list[_Command]) -> Iterator[AttemptSummary]:
    starts = [(command, attempt) for command in commands for attempt in command.attempts]
    last_row: float | None = None
    for (command, attempt), following in zip_longest(starts, starts[1:]):
        recovery = None
        if attempt.rows and last_row is not None:
            first = attempt.rows[0]["began"]
            recovery = max(0.0, first - last_row - _idle(commands, last_row, first))
        ended, interrupted = _ending(attempt, command, following)
        yield AttemptSummary(
            number=attempt.number,
            began=attempt.began - commands[0].begin,
            restored_step=attempt.restored_step,
            reached_step=attempt.reached_step,
            workers=attempt.workers,
            ended=ended,
            interrupted=interrupted,
            steps_redone=max(0, attempt.reached_step - following[1].restored_step) if following else 0,
            recovery_seconds=recovery,
        )
        last_row = attempt.rows[-1]["time"] if attempt.rows else last_row


def _ending(attempt: _Attempt, command: _Command, following: tuple[_Command, _Attempt] | None) -> tuple[str, bool]:
    """How an attempt ended, and whether that interrupted the run."""
    last_of_command = following is None or following[0] is not command
    if last_of_command and command.trained and attempt.cause not in _IN_PEACE:
        return "finished", False
    if attempt.cause:
        return _CAUSES[attempt.cause], attempt.cause != "stopping"
    if not last_of_command:
        return "workers or their node were lost", True
    if command.code is not None:
        return f"the command failed (code {command.code})", True
    return ("the command was killed", True) if following else ("at work, or killed", False)


def _idle(commands: list[_Command], begin: float, end: float) -> float:
    """Seconds without a command between two times."""
    gaps = ((command.last_sign, following.begin) for command, following in pairwise(commands))
    return sum(max(0.0, min(end, stop) - max(begin, start)) for start, stop in gaps)
