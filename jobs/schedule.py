"""`feral schedule`: hands `feral tick` to cron, systemd, Kubernetes or Airflow, as a file that is ready to use."""

import os
import re
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.promote import Where

if TYPE_CHECKING:
    from jobs.schedules.plan import Plan


class Scheduler(StrEnum):
    cron = "cron"
    systemd = "systemd"
    k8s_cronjob = "k8s-cronjob"
    raycronjob = "raycronjob"
    airflow = "airflow"


KUBERNETES = (Scheduler.k8s_cronjob, Scheduler.raycronjob)


def schedule(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="the production cycle, as of `feral tick`; on Kubernetes its path in the pods"
        ),
    ],
    scheduler: Annotated[Scheduler, typer.Option("--as", help="who is to run it")],
    every: Annotated[str | None, typer.Option(help="15m, 1h, 6h, 1d; the default is 1h")] = None,
    at: Annotated[str | None, typer.Option(metavar="HH:MM", help="instead: once a day, at this time")] = None,
    time_zone: Annotated[
        str | None,
        typer.Option(help="as Europe/Berlin; default: the machine's with cron and systemd, UTC with the others"),
    ] = None,
    to: Annotated[Path, typer.Option(help="folder to write into")] = Path(),
    name: Annotated[str | None, typer.Option(help="of what is made; default: feral- and the file's name")] = None,
    ledger: Where = None,
    image: Annotated[str | None, typer.Option(help="of the pod, with k8s-cronjob; default: feral:VERSION")] = None,
    cluster: Annotated[str | None, typer.Option(help="name of the RayCluster, on Kubernetes; default: feral")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that were changed since")] = False,
) -> None:
    """Writes a file that lets a scheduler run `feral tick FILE`, and says what to do with it.

    Ticks may come at any frequency, twice at once, or not at all for a day: each does what is due.

    Example: feral schedule production.toml --as systemd --every 15m --to ~/.config/systemd/user
    """
    from importlib.metadata import version

    from jobs.schedules.plan import Plan, Times

    on_kubernetes = scheduler in KUBERNETES
    if not on_kubernetes and not file.is_file():
        raise ValueError(f"there is no file {file}: `feral tick --example > {file}` makes one")
    if on_kubernetes and not file.is_absolute():
        raise ValueError(f"{file}: give the path that the pods see, on the shared volume, as /shared/{file.name}")
    if time_zone and scheduler is Scheduler.cron:
        raise ValueError(f"--time-zone {time_zone}: cron knows the machine's time zone only; use --as systemd")
    if (cluster and not on_kubernetes) or (image and scheduler is not Scheduler.k8s_cronjob):
        raise ValueError(f"--cluster is for Kubernetes and --image for k8s-cronjob: --as {scheduler.value} has none")
    plan = Plan(
        name=_checked_name(name or f"feral-{re.sub('[^a-z0-9]+', '-', file.stem.lower()).strip('-')}"),
        file=str(file if on_kubernetes else file.absolute()),
        ledger=_ledger(ledger, file, on_kubernetes=on_kubernetes),
        times=Times.parse(every, at),
        time_zone=_checked_zone(time_zone),
        feral=_this_feral(),
        folder=str(Path.cwd()),
        image=image or f"feral:{version('feral')}",
        cluster=cluster or "feral",
    )
    written = [_write(to / file_name, text, overwrite) for file_name, text in _files(scheduler, plan).items()]
    for path in written:
        typer.echo(f"wrote {path}")
    for line in _next_steps(scheduler, plan, written):
        typer.echo(line)
    if on_kubernetes and (plan.ledger is None or "://" not in plan.ledger):
        named = f"{plan.ledger} is" if plan.ledger else "is what the file or FERAL_LEDGER in the pods names, else"
        typer.secho(
            f"the ledger {named} a SQLite file, which pods cannot share safely: run PostgreSQL, and give --ledger "
            "postgresql://user@host/feral (the password as PGPASSWORD in the Secret feral-credentials)",
            fg="yellow",
            err=True,
        )


def _files(scheduler: Scheduler, plan: "Plan") -> dict[str, str]:
    from jobs.schedules import airflow, kubernetes, local

    makers = {
        Scheduler.cron: local.crontab,
        Scheduler.systemd: local.systemd_units,
        Scheduler.k8s_cronjob: kubernetes.cronjob,
        Scheduler.raycronjob: kubernetes.raycronjob,
        Scheduler.airflow: airflow.dag,
    }
    return makers[scheduler](plan)


def _next_steps(scheduler: Scheduler, plan: "Plan", written: list[Path]) -> list[str]:
    first = shlex.quote(str(written[0]))
    if scheduler is Scheduler.cron:
        return [f"install it:  (crontab -l; cat {first}) | crontab -", f"its log:     {plan.folder}/{plan.name}.log"]
    if scheduler is Scheduler.systemd:
        here = written[0].absolute().parent == Path.home() / ".config/systemd/user"
        link = [] if here else [f"link them:   systemctl --user link {shlex.join(str(p.absolute()) for p in written)}"]
        return [
            *link,
            f"start it:    systemctl --user daemon-reload && systemctl --user enable --now {plan.name}.timer",
            "without you: loginctl enable-linger   # it also runs while nobody is logged in",
            f"its log:     journalctl --user -u {plan.name}",
        ]
    if scheduler is Scheduler.airflow:
        return [f"install it:  cp {first} $AIRFLOW_HOME/dags/   # on workers that have {plan.feral[0]} and {plan.file}"]
    steps = [f"install it:  kubectl apply -f {first}   # beside the RayCluster `{plan.cluster}` and its shared volume"]
    if scheduler is Scheduler.k8s_cronjob:
        return [*steps, f"at once:     kubectl create job --from=cronjob/{plan.name} {plan.name}-now"]
    return [
        *steps,
        "RayCronJob is ALPHA (KubeRay 1.6, feature gate RayCronJob): --as k8s-cronjob is safer",
    ]


def _this_feral() -> tuple[str, ...]:
    script = Path(sys.executable).with_name("feral")
    return (str(script),) if script.exists() else (sys.executable, "-m", "jobs.cli")


def _write(path: Path, text: str, overwrite: bool) -> Path:
    if path.exists() and path.read_text() != text and not overwrite:
        raise ValueError(f"{path} is there and holds something else: --overwrite replaces it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?", name):  # a CronJob's name may have 52 characters
        raise ValueError(f"--name {name!r}: small letters, digits and -, at most 52, as feral-production")
    return name


def _ledger(given: str | None, file: Path, *, on_kubernetes: bool) -> str | None:
    """What `--ledger` of the tick is to be; None where its file names the ledger, or what it finds in its pod."""
    from pipeline.cycle.config import read_cycle
    from pipeline.ledger.database import DEFAULT, VARIABLE
    from pipeline.redaction import without_secrets

    if not given and (on_kubernetes or read_cycle(file).ledger):
        return None
    ledger = given or os.environ.get(VARIABLE) or DEFAULT
    if (hidden := without_secrets(ledger)) != ledger:
        raise ValueError(
            f"--ledger {hidden} holds a password, and the file would hold it, too: leave it out, and give it as "
            "PGPASSWORD or in ~/.pgpass where the tick runs"
        )
    if "://" in ledger:
        return ledger
    return str((file.parent if on_kubernetes else Path.cwd()) / ledger)


def _checked_zone(zone: str | None) -> str | None:
    from zoneinfo import available_timezones

    if zone and zone not in available_timezones():
        raise ValueError(f"--time-zone {zone!r} is no time zone: write it as Europe/Berlin")
    return zone
