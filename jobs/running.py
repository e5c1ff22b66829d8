"""`feral jobs`: what was submitted to a cluster: how it stands, its log, and its end."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.submit import ADDRESS_VARIABLES, LOCAL, check_address, connect, follow

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

app = typer.Typer(add_completion=False)

Job = Annotated[str, typer.Argument(metavar="JOB", help="an id, as `feral jobs` lists it")]
Address = Annotated[str, typer.Option(help="the cluster's dashboard; default: as for `feral submit`")]


@app.callback(invoke_without_command=True)
def overview(
    context: typer.Context,
    address: Annotated[str, typer.Option(envvar=list(ADDRESS_VARIABLES), help="the cluster's dashboard")] = LOCAL,
    unauthenticated: Annotated[
        bool, typer.Option("--unauthenticated", help="allow another machine over plain http without a token")
    ] = False,
) -> None:
    """The jobs that `feral submit` has sent to a cluster, newest last.

    Example: feral jobs; feral jobs log feral-pretrain-3f2a9c01; feral jobs stop feral-pretrain-3f2a9c01
    """
    context.obj = (address, unauthenticated)
    if context.invoked_subcommand:
        return
    jobs = sorted(_client(context).list_jobs(), key=lambda job: job.start_time or 0)
    if not jobs:
        typer.echo(f"no jobs at {address}; `feral submit -- COMMAND` sends one")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "status", "began", "took", "command", box=None)
    for job in jobs:
        table.add_row(_name(job), job.status.value, _when(job.start_time), _took(job), _command(job))
    Console(width=max(Console().width, 120)).print(table, markup=False)


@app.command()
def status(context: typer.Context, job: Job, address: Address = "") -> None:
    """One word: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED. Exit status 1 if it failed or was stopped.

    Example: feral jobs status feral-pretrain-3f2a9c01
    """
    found = _found(_client(context, address), job)
    typer.echo(found.status.value)
    if found.status.value in ("FAILED", "STOPPED"):
        typer.echo(found.message or "", err=True)
        raise typer.Exit(1)


@app.command()
def log(
    context: typer.Context,
    job: Job,
    wait: Annotated[bool, typer.Option("--follow", help="go on until the job ends, and end as it ends")] = False,
    address: Address = "",
) -> None:
    """What the job has printed.

    Example: feral jobs log feral-pretrain-3f2a9c01 --follow
    """
    client = _client(context, address)
    _found(client, job)
    if wait:
        raise typer.Exit(follow(client, job, address or context.obj[0]))
    typer.echo(client.get_job_logs(job), nl=False)


@app.command()
def stop(context: typer.Context, job: Job, address: Address = "") -> None:
    """Lets a job save and end, and waits for that. The same `feral submit` starts it anew, and it resumes.

    Example: feral jobs stop feral-pretrain-3f2a9c01
    """
    client = _client(context, address)
    if _found(client, job).status.is_terminal():
        typer.echo(f"{job} has ended already", err=True)
    else:
        client.stop_job(job)
        typer.echo(f"{job} was told to stop: a run saves first", err=True)
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.5)
    typer.echo(client.get_job_status(job).value)


def _client(context: typer.Context, address: str = "") -> "JobSubmissionClient":
    given, unauthenticated = context.obj
    check_address(address or given, unauthenticated=unauthenticated)
    return connect(address or given)


def _found(client: "JobSubmissionClient", job: str) -> "JobDetails":
    """Raises ValueError where the cluster knows no such job."""
    jobs = {_name(found): found for found in client.list_jobs()}
    if job not in jobs:
        raise ValueError(f"the cluster knows no job {job!r}; it knows {', '.join(sorted(jobs)) or 'none'}")
    return jobs[job]


def _name(job: "JobDetails") -> str:
    return job.submission_id or job.job_id or ""


def _command(job: "JobDetails") -> str:
    command = (job.metadata or {}).get("command")
    return f"feral {command}" if command else job.entrypoint


def _when(milliseconds: int | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(milliseconds / 1000)) if milliseconds else ""


def _took(job: "JobDetails") -> str:
    from jobs.pretrain import duration

    if not job.start_time:
        return ""
    return duration((job.end_time or time.time() * 1000) / 1000 - job.start_time / 1000)
