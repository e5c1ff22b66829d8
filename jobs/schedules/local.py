"""Schedulers of one machine: cron and systemd."""

import re
import shlex

from jobs.schedules.plan import Plan


def crontab(plan: Plan) -> dict[str, str]:
    """A crontab of one line. Cron knows no environment but what stands here, and % means a new line to it."""
    line = (
        f"cd {shlex.quote(plan.folder)} && {shlex.join(plan.command)} "
        f">> {shlex.quote(f'{plan.folder}/{plan.name}.log')} 2>&1"
    ).replace("%", r"\%")
    text = f"""\
# feral tick {plan.file}: what is due, again and again. Ticks that overlap are harmless.
SHELL=/bin/sh
PATH=/usr/local/bin:/usr/bin:/bin
{plan.times.cron} {line}
"""
    return {f"{plan.name}.cron": text}


def systemd_units(plan: Plan) -> dict[str, str]:
    """A service that ticks once, and a timer that starts it; a start that was missed is made up for."""
    zone = f" {plan.time_zone}" if plan.time_zone else ""
    service = f"""\
[Unit]
Description=feral tick {_literal(plan.file)}

[Service]
Type=oneshot
WorkingDirectory={_literal(plan.folder)}
# Credentials, one NAME=VALUE a line; need not exist. Readable for you alone: chmod 600.
EnvironmentFile=-%h/.config/feral/environment
ExecStart={" ".join(map(_word, plan.command))}
# Nothing to do, held by the gate, quarantined (told in the log and the ledger), stopped: no failures of the service.
SuccessExitStatus=10 20 30 143
# A run that is stopped saves first; its workers are told by the command alone.
KillMode=mixed
TimeoutStopSec=300
"""
    timer = f"""\
[Unit]
Description=When to run feral tick {_literal(plan.file)}

[Timer]
OnCalendar={plan.times.calendar}{zone}
Persistent=true
RandomizedDelaySec={min(300, plan.times.seconds_between // 10)}

[Install]
WantedBy=timers.target
"""
    return {f"{plan.name}.service": service, f"{plan.name}.timer": timer}


def _literal(text: str) -> str:
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """A word of ExecStart=: man systemd.service, "COMMAND LINES"."""
    if re.fullmatch(r"[\w@+=:,./-]+", text):
        return text
    escaped = _literal(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"'
