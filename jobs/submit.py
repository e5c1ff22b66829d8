"""`feral submit`: runs a feral command as a Ray job on a running cluster, once, and follows it to its end."""

import asyncio
import hashlib
import ipaddress
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

from pipeline.redaction import without_secrets

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

CONTEXT = {"allow_interspersed_args": False}  # from the first word on, everything belongs to the submitted command
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray's own, in Ray's order
LOCAL = "http://127.0.0.1:8265"  # a cluster of this machine, or a tunnel to one
INTERRUPTED = 130  # what a shell reports after Ctrl-C


def submit(
    command: list[str] = typer.Argument(
        metavar="COMMAND", help="a feral command and its arguments, after `--`; paths as the cluster sees them"
    ),
    address: str = typer.Option(
        LOCAL, envvar=list(ADDRESS_VARIABLES), help="the cluster's dashboard, http(s)://host:port"
    ),
    name: str = typer.Option("", "--id", help="the job's id; default: made from the command, the same for the same"),
    again: bool = typer.Option(False, "--again", help="run it again although it succeeded before"),
    working_dir: str = typer.Option(
        "none", help="folder to upload as the job's working directory; packages in it win over installed ones"
    ),
    env: list[str] = typer.Option(
        [], metavar="KEY=VALUE", help="environment variable of the job; whoever sees the dashboard can read it"
    ),
    python: str = typer.Option(
        "",
        help="path of the interpreter ON THE CLUSTER; default: this one if the address is loopback, else `python`. "
        "Behind a tunnel to another machine the address is loopback too: give --python",
    ),
    unauthenticated: bool = typer.Option(
        False, "--unauthenticated", help="allow another machine over plain http without a token"
    ),
    wait: bool = typer.Option(True, "--wait/--no-wait", help="show the job's log and end as it ends"),
) -> None:
    """Run a feral command as a job on a running Ray cluster.

    The same command is not started twice: while it runs it is followed; when it
    succeeded nothing happens (see --again); when it failed or was stopped it is
    started anew, and resumes from its run directory. Ctrl-C stops following, not
    the job. The exit status is 0 if the job succeeded, 1 if it did not.

    Example: feral submit --python python -- pretrain simclr_32px data.store=/shared/stores/dump
    --run /shared/runs/first
    """
    check_command(command)
    check_address(address, unauthenticated=unauthenticated)
    environment = runtime_env(env, working_dir)
    python = python or (sys.executable if is_loopback(address) else "python")
    entrypoint = shlex.join([python, "-m", "jobs.cli", *command])
    client = connect(address)
    job, running = start_once(client, name or job_id(command), command, entrypoint, environment, again=again)
    if not running:
        return
    if not wait:
        typer.echo(job)
        _say(f"`feral jobs log {job} --follow --address {address}` shows its log, {_how_to_stop(job, address)}")
        return
    raise typer.Exit(follow(client, job, address))


def job_id(command: Sequence[str]) -> str:
    """An id that is the same for the same command: feral-<command>-<8 hex digits of all its words>."""
    return f"feral-{command[0]}-{hashlib.sha256(shlex.join(command).encode()).hexdigest()[:8]}"


def check_command(command: Sequence[str]) -> None:
    """Refuses what could not run, before anything is sent.

    Raises:
        ValueError: the first word is no feral command, or runs nothing on a cluster; or a word holds a secret.
    """
    from jobs.cli import app  # not above: jobs.cli imports this module

    commands = {info.name for info in app.registered_commands} | {info.name for info in app.registered_groups}
    names = {name for name in commands if name} - {"submit", "jobs", "schedule"}
    if command[0] == "submit":
        raise ValueError(
            "a submitted job cannot submit: give `feral submit` the command itself, e.g. `feral submit -- curate …`"
        )
    if command[0] not in names:
        raise ValueError(f"{command[0]!r} is no feral command; there are: {', '.join(sorted(names))}")
    if open_secrets := [hidden for word in command if (hidden := without_secrets(word)) != word]:
        raise ValueError(
            f"{open_secrets[0]} holds a secret, and a job's command is in the cluster's logs and on its dashboard: put "
            "the secret into the environment of the cluster's nodes (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "PGPASSWORD, a mounted ~/.pgpass, …), and leave it out here"
        )


def is_loopback(address: str) -> bool:
    """Whether the address is of this machine, or of a tunnel that begins here."""
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def check_address(address: str, *, unauthenticated: bool) -> None:
    """Refuses an address that is no dashboard, or where a job would be sent open to anybody.

    Raises:
        ValueError: not http(s)://host; or plain http to another machine and no token, without `unauthenticated`.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"--address {address!r} is no http(s)://host:port: give the cluster's dashboard, usually port 8265 "
            f"(the environment variables {' and '.join(ADDRESS_VARIABLES)} count as --address too)"
        )
    if parts.scheme == "http" and not is_loopback(address) and not unauthenticated and not has_token():
        raise ValueError(
            f"{address} is another machine, plain http, and no token is configured here: anybody could run code on "
            "such a cluster. Start it with RAY_AUTH_MODE=token, and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
            "~/.ray/auth_token) here; or use a tunnel (`ray dashboard cluster.yaml`); or give --unauthenticated"
        )


def has_token() -> bool:
    """Whether Ray's client will send a token: https://docs.ray.io/en/latest/ray-security/token-auth.html."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return False
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or (path.is_file() and path.stat().st_size > 0)


def runtime_env(env: Sequence[str], working_dir: str) -> dict[str, object]:
    """What Ray sets up for the job and all its tasks: the environment of a local run, each KEY=VALUE, the directory.

    Raises:
        ValueError: a pair is not KEY=VALUE or an unsafe switch of Ray's, or the directory does not exist here.
    """
    from pipeline.cluster import QUIET_RAY, refuse_unsafe_settings

    variables = dict(QUIET_RAY)
    for pair in env:
        key, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise ValueError(f"--env {pair!r} is not KEY=VALUE, e.g. --env OMP_NUM_THREADS=1")
        if without_secrets(pair) != pair:
            _say(f"--env {key}: whoever may see the cluster's dashboard can read it; set it where Ray starts")
        variables[key] = value
    refuse_unsafe_settings(variables)
    if working_dir == "none":
        return {"env_vars": variables}
    if not Path(working_dir).is_dir():
        raise ValueError(f"--working-dir {working_dir!r} is no directory here; `none` (the default) uploads nothing")
    return {"env_vars": variables, "working_dir": str(Path(working_dir).resolve())}


def connect(address: str) -> "JobSubmissionClient":
    """A client of the cluster at this address, whatever the environment says.

    Raises:
        ValueError: nobody answers there, it is no Ray dashboard, or it wants another token.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it reports that the log has ended
    try:
        with _unset(ADDRESS_VARIABLES):  # they would win over the argument
            return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ValueError(
            f"the cluster at {address} wants its token, and got none or another: set RAY_AUTH_MODE=token here, and the "
            "token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"no Ray dashboard answers at {address} ({str(error).rstrip('.')}): start a cluster (`ray start --head`, "
            "`ray up cluster.yaml`), open a tunnel (`ray dashboard cluster.yaml`), or give its --address"
        ) from error


def start_once(
    client: "JobSubmissionClient",
    name: str,
    command: Sequence[str],
    entrypoint: str,
    environment: dict[str, object],
    *,
    again: bool,
) -> tuple[str, bool]:
    """Submits the command unless it runs or has succeeded; returns the id and whether there is something to follow.

    A new attempt gets a new id (NAME, NAME.2, …). A deleted id must not be used again (`delete_job` of Ray 2.60 says
    so): within a second the watcher of the old job finds its process dead and marks the new job as failed.

    Raises:
        ValueError: the name is not fit to be an id, or another command has it, or the cluster refuses the job.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"--id {name!r} is no job id: letters, digits, - and _, e.g. nightly-2026-11-22")
    from ray.exceptions import RayError

    number, job = _last_attempt(client, name)
    if job is not None:
        if (job.metadata or {}).get("command") != shlex.join(command):
            raise ValueError(f"the id {name!r} belongs to another job, `{job.entrypoint}`: choose another --id")
        last = job.submission_id or name
        if not job.status.is_terminal():
            _say(f"{last} is {job.status.value} already and is not started twice; this is its log")
            return last, True
        if job.status.value == "SUCCEEDED" and not again:
            _say(f"{last} has SUCCEEDED already, nothing to do; --again runs it again, --id NAME as another job")
            return last, False
        _say(f"{last} has {job.status.value}: starting it again")
    new = f"{name}.{number + 1}" if number else name
    try:
        client.submit_job(
            entrypoint=entrypoint, submission_id=new, runtime_env=environment, metadata={"command": shlex.join(command)}
        )
    except (RuntimeError, RayError) as error:  # HTTP 500 for a used id as for any other fault: only the list can tell
        if _last_attempt(client, name)[0] <= number:
            raise ValueError(f"the cluster refuses the job {new}: {error}") from error
        _say(f"{new} was submitted by somebody else at the same moment; this is its log")
    else:
        _say(f"submitted {new}: {entrypoint}")
    return new, True


def follow(client: "JobSubmissionClient", job: str, address: str) -> int:
    """Prints the job's log while it grows; returns the exit status: 0 succeeded, 1 failed or stopped, 130 Ctrl-C.

    Raises:
        ValueError: the connection broke before the job's end.
    """
    from aiohttp import ClientError

    try:
        asyncio.run(_print_log(client, job))
        info = client.get_job_info(job)
        if not info.status.is_terminal():
            raise RuntimeError(f"its log ended while it was {info.status.value}")
    except KeyboardInterrupt:
        _say(f"\nno longer following; {job} goes on: the same command follows it again, {_how_to_stop(job, address)}")
        return INTERRUPTED
    except (OSError, RuntimeError, ClientError) as error:
        raise ValueError(
            f"lost sight of {job} at {address} ({error}), which may well go on: the same command follows it again"
        ) from error
    if info.driver_exit_code is None and info.message and info.status.value == "FAILED":
        _say(info.message)  # it failed before the command ran, so the log does not say why
    code = "" if info.driver_exit_code is None else f" (exit code {info.driver_exit_code})"
    _say(f"{job} {info.status.value}{code}")
    return 0 if info.status.value == "SUCCEEDED" else 1


async def _print_log(client: "JobSubmissionClient", job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def _last_attempt(client: "JobSubmissionClient", name: str) -> tuple[int, "JobDetails | None"]:
    pattern = re.compile(re.escape(name) + r"(?:\.(\d+))?")
    found: list[tuple[int, JobDetails]] = []
    for job in client.list_jobs():
        if match := pattern.fullmatch(job.submission_id or ""):
            found.append((int(match[1] or 1), job))
    return max(found, key=lambda attempt: attempt[0], default=(0, None))


def _how_to_stop(job: str, address: str) -> str:
    return f"`feral jobs stop {job} --address {address}` stops it"


def _say(message: str) -> None:
    typer.echo(message, err=True)


@contextmanager
def _unset(names: Sequence[str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
