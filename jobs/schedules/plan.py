"""What is scheduled, and when: the same for every scheduler."""

import re
from dataclasses import dataclass

UNITS = {"m": 1, "h": 60, "d": 24 * 60}  # in minutes
_EVERY = re.compile(r"(\d+)([mhd])")
_AT = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True)
class Times:
    """Every so many minutes, counted from midnight, or once a day at `minutes` after it."""

    minutes: int
    daily: bool

    @classmethod
    def parse(cls, every: str | None, at: str | None) -> "Times":
        """From "15m", "2h", "1d", or from "02:30"; from neither, every hour.

        Raises:
            ValueError: both, or what cron could not say: each day is to begin anew with the same minutes.
        """
        if every and at:
            raise ValueError(f"--every {every} and --at {at}: give one of them")
        if at:
            if not (found := _AT.fullmatch(at)):
                raise ValueError(f"--at {at!r} is no time of day: write hours and minutes, as 02:30")
            return cls(60 * int(found[1]) + int(found[2]), daily=True)
        found = _EVERY.fullmatch(every or "1h")
        minutes = int(found[1]) * UNITS[found[2]] if found else 0
        if minutes == UNITS["d"]:
            return cls(0, daily=True)
        if not minutes or (60 % minutes and (minutes % 60 or UNITS["d"] % minutes)):
            raise ValueError(
                f"--every {every!r}: write minutes that divide an hour (5m, 15m, 30m), hours that divide a day (1h, "
                "2h, 6h, 12h), or 1d"
            )
        return cls(minutes, daily=False)

    @property
    def cron(self) -> str:
        """Five fields: minute, hour, day, month, weekday."""
        hours, minutes = divmod(self.minutes, 60)
        if self.daily:
            return f"{minutes} {hours} * * *"
        if hours:
            return f"0 */{hours} * * *" if hours > 1 else "0 * * * *"
        return f"*/{minutes} * * * *" if minutes > 1 else "* * * * *"

    @property
    def calendar(self) -> str:
        """OnCalendar= of systemd."""
        hours, minutes = divmod(self.minutes, 60)
        if self.daily:
            return f"*-*-* {hours:02d}:{minutes:02d}:00"
        return f"*-*-* 0/{hours}:00:00" if hours else f"*-*-* *:0/{minutes}:00"

    @property
    def seconds_between(self) -> int:
        return 60 * (UNITS["d"] if self.daily else self.minutes)


@dataclass(frozen=True)
class Plan:
    """A tick that is to be run again and again. Paths are those of where it will run."""

    name: str  # letters, digits and -: of units, DAGs, Kubernetes objects
    file: str  # the production cycle
    ledger: str | None  # a file's absolute path, or a URL without a password; None: as `file` or the environment says
    times: Times
    time_zone: str | None  # None: the machine's
    feral: tuple[str, ...]  # the command, for schedulers of this machine: they know no PATH
    folder: str  # absolute; where the command runs, and where its log lies
    image: str
    cluster: str  # name of the RayCluster

    @property
    def arguments(self) -> list[str]:
        """Of `feral`."""
        return ["tick", self.file, *(["--ledger", self.ledger] if self.ledger else [])]

    @property
    def command(self) -> list[str]:
        """On this machine."""
        return [*self.feral, *self.arguments]
