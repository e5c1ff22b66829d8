"""`feral ledger`: what the ledger knows, and lineage both ways."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.promote import AsJson, Where

if TYPE_CHECKING:
    from sqlalchemy import Row

    from pipeline.ledger.lineage import Trained
    from pipeline.ledger.seen import Reader

app = typer.Typer(add_completion=False)
SHORT = 12  # digits of a digest: enough to find it again


@app.callback(invoke_without_command=True)
def overview(context: typer.Context, ledger: Where = None, as_json: AsJson = False) -> None:
    """What the ledger knows: names, runs, dumps and the work that is not done; lineage both ways.

    Example: feral ledger; feral ledger lineage champion; feral ledger saw 3f2a9c01
    """
    if context.invoked_subcommand:
        context.obj = ledger
        return
    from pipeline.ledger.database import Ledger
    from pipeline.ledger.overview import overview as look

    opened = Ledger.open(ledger)
    with opened.reading() as connection:
        found = look(connection)
    if as_json:
        _print_json({part: [_plain(row) for row in rows] for part, rows in found.items()})
        return
    typer.echo(opened.shown)
    _table("names", found["names"], lambda row: {
        "name": row.name, "run": row.run, "step": f"{row.step:,}", "checkpoint": row.digest[:SHORT],
        "since": _when(row.since), "by": row.actor, "reason": row.reason,
    })  # fmt: skip
    _table("runs", found["runs"], lambda row: {
        "run": row.path, "checkpoints": row.checkpoints, "at step": f"{row.step or 0:,}",
        "starts from": (row.base or "")[:SHORT], "recorded": _when(row.recorded_at),
    })  # fmt: skip
    _table("dumps", found["dumps"], lambda row: {
        "no.": row.admit_no, "dump": row.dump_id[:SHORT], "source": row.source_id or row.uri or "", "state": row.state,
        "why": row.reason or "", "files": f"{row.files:,}", "MB": f"{row.bytes / 1e6:,.1f}",
        "sealed": _when(row.sealed_at),
    })  # fmt: skip
    _table("work", found["work"], lambda row: {
        "work": row.work_id, "dump": row.dump_id[:SHORT], "stage": row.stage, "state": row.state,
        "owner": row.owner or "", "attempt": row.attempt, "lease until": _when(row.expires_at),
        "said": row.output or "",
    })  # fmt: skip
    if found["deliveries"]:
        _table("deliveries that are not whole yet", found["deliveries"], lambda row: {
            "source": row.source_id or "", "where": row.uri, "unchanged since": _when(row.stable_since),
        })  # fmt: skip
    for row in found["gaps"]:
        typer.secho(f"source {row.source_id}: missing up to {row.last}: {_ranges(row.missing)}", fg="yellow")


@app.command()
def lineage(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="a name, a run's directory, or a digest")],
    ledger: Where = None,
    as_json: AsJson = False,
) -> None:
    """What fed a checkpoint: its run, the data of it, and the runs that it starts from; and what descends from it.

    Example: feral ledger lineage champion
    """
    from pipeline.ledger.database import Ledger
    from pipeline.ledger.lineage import descendants, dumps_of, evaluations, fed, find_checkpoint

    with Ledger.open(ledger or context.obj).reading() as connection:
        one = find_checkpoint(connection, what)
        found, after = fed(connection, one.digest), descendants(connection, [one.digest])
        judged = evaluations(connection, one.digest)
    if as_json:
        _print_json(
            {
                "checkpoint": one.digest,
                "runs": [_trained(trained) for trained in found],
                "dumps": dumps_of(found),
                "descendants": [dict(row._mapping) for row in after],
                "evaluations": [dict(row._mapping) for row in judged],
            }
        )
        return
    for depth, trained in enumerate(found):
        typer.echo(f"{'  ' * depth}{'started from ' if depth else ''}{_named(trained)}")
        for line in map(_read, trained.inputs):
            typer.echo(f"{'  ' * depth}  {line}")
        if not trained.inputs:
            typer.secho(f"{'  ' * depth}  its data is not known: the store was gone when it was recorded", fg="yellow")
    if (base := found[-1].run.base) is not None:
        typer.secho(f"{'  ' * len(found)}started from {base[:SHORT]}, which the ledger does not know", fg="yellow")
    for row in judged:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in row.scores.items() if value is not None)
        typer.echo(f"judged on store {row.store_digest[:SHORT]}{'' if row.complete else ', incompletely'}: {scores}")
    typer.echo(f"fed by {len(dumps_of(found))} dump(s): {', '.join(one[:SHORT] for one in dumps_of(found))}")
    typer.echo(f"{len(after)} recorded checkpoint(s) descend from it" + _listed(after))


@app.command()
def saw(
    context: typer.Context,
    sample: Annotated[str, typer.Argument(metavar="SAMPLE", help="sha256 of an image's file, or 8 digits of it")],
    ledger: Where = None,
    as_json: AsJson = False,
) -> None:
    """Which checkpoints saw a sample, and which descend from these: for takedowns. Copies with other bytes are other
    samples. Use `feral block STORE HASH` to take it out of use.

    Example: feral ledger saw $(sha256sum picture.jpg | cut -c1-64)
    """
    from pipeline.ledger.database import Ledger
    from pipeline.ledger.promotion import names
    from pipeline.ledger.seen import saw as look

    with Ledger.open(ledger or context.obj).reading() as connection:
        found = look(connection, sample)
        standing = {row.digest: row.name for row in names(connection)}
    tainted = found.tainted
    named = [standing[row.digest] for row in tainted if row.digest in standing]
    if as_json:
        _print_json(
            {
                "sample": found.sample,
                "stores": [
                    {"store": str(one.store.path), "selection": one.selection.name, "split": one.split,
                     "left_out": one.reason, "blocked": one.blocked}
                    for one in found.places
                ],
                "runs": [{"run": one.run.path, "first_step": one.first, "inexact": one.inexact,
                          "saw": [row.digest for row in one.saw]} for one in found.readers],
                "descendants": [row.digest for row in found.descendants],
                "checkpoints": [row.digest for row in tainted],
                "names": named,
                "unreadable": found.unreadable,
            }
        )  # fmt: skip
        return
    typer.echo(f"sample {found.sample}")
    if not found.places:
        typer.echo("no recorded store that could be read holds it")
    for place in found.places:
        use = f"left out ({place.reason})" if place.reason else f"kept, {place.split} split"
        blocked = "blocked by now" if place.blocked else "not blocked: `feral block` takes it out of use"
        typer.echo(f"in {place.store.path}, selection {place.selection.name}: {use}; {blocked}")
    for reader in found.readers:
        typer.echo(_sight(reader))
    typer.echo(f"descending from these: {len(found.descendants)} checkpoint(s)" + _listed(found.descendants))
    for line in found.unreadable:
        typer.secho(f"not looked into: {line}", fg="yellow")
    colour = "red" if named else "yellow" if tainted else "green"
    among = f", among them {', '.join(named)}" if named else ""
    typer.secho(f"{len(tainted)} recorded checkpoint(s) saw it{among}", fg=colour)


@app.command()
def events(
    context: typer.Context,
    name: Annotated[str | None, typer.Option(help="of one name only")] = None,
    last: Annotated[int, typer.Option(min=1, help="how many")] = 50,
    ledger: Where = None,
    as_json: AsJson = False,
) -> None:
    """Every promotion, hold and rollback: who, when, why, and what the gate found; and what persons decided of dumps.

    Example: feral ledger events --last 5
    """
    from pipeline.ledger.database import Ledger
    from pipeline.ledger.promotion import events as look
    from pipeline.ledger.resolutions import resolutions

    with Ledger.open(ledger or context.obj).reading() as connection:
        found = look(connection, name, last)
        decided = resolutions(connection, last) if name is None else []
    if as_json:
        _print_json([dict(row._mapping) for row in sorted([*found, *decided], key=lambda row: row.at)])
        return
    _table("events", found, lambda row: {
        "when": _when(row.at), "name": row.name, "action": row.action, "checkpoint": row.checkpoint[:SHORT],
        "before": (row.before or "")[:SHORT], "by": row.actor, "reason": row.reason,
    })  # fmt: skip
    if decided:
        _table("decided of dumps", decided, lambda row: {
            "when": _when(row.at), "dump": f"{row.admit_no} ({row.dump_id[:SHORT]})", "action": row.action,
            "it was": row.before, "by": row.actor, "reason": row.reason,
        })  # fmt: skip


@app.command()
def mirror(context: typer.Context, ledger: Where = None) -> None:
    """Brings the MLflow server at MLFLOW_TRACKING_URI up to date: promoted checkpoints, names, recorded runs. Done
    again it changes nothing.

    Example: MLFLOW_TRACKING_URI=http://mlflow:5000 feral ledger mirror
    """
    from pipeline.ledger.database import Ledger
    from pipeline.mirror.registry import mirror_registry, mirror_runs
    from pipeline.mirror.server import NotMirrored, connect

    opened = Ledger.open(ledger or context.obj)
    try:
        server = connect()
        mirror_registry(server, opened, typer.echo)
        mirror_runs(server, opened, typer.echo)
    except NotMirrored as error:
        raise ValueError(f"not mirrored to MLflow: {error}") from None


def _named(trained: "Trained") -> str:
    step = f", step {trained.step:,}" if trained.step is not None else ""
    return f"{trained.run.path}{step} ({(trained.digest or '?')[:SHORT]})"


def _read(read: "Row") -> str:
    source = f"{read.source_id} {read.seq}" if read.source_id else "curated by hand"
    return (
        f"{read.role}: {read.consumed:,} of {read.planned:,} planned samples from {read.store}, selection {read.name} "
        f"({read.samples:,} images) of dump {read.admit_no} ({read.dump_id[:SHORT]}, {source})"
    )


def _trained(trained: "Trained") -> dict[str, Any]:
    facts = {key: trained.run._mapping[key] for key in ("run_id", "path", "base", "seed", "versions")}
    read = [dict(one._mapping) for one in trained.inputs]
    return facts | {"checkpoint": trained.digest, "step": trained.step, "inputs": read}


def _sight(reader: "Reader") -> str:
    run = Path(reader.run.path).name
    if reader.first is None:
        return f"{run}: no batch held it, in as far as its recorded checkpoints go"
    when = f"first in step {reader.first:,}"
    if reader.inexact:
        when = f"taken as seen from its first step on, for the order cannot be computed ({reader.inexact})"
    return f"{run}: {when}; seen by" + (_listed(reader.saw) or ": no recorded checkpoint")


def _listed(rows: "Sequence[Row]") -> str:
    return ": " + ", ".join(f"{Path(row.path).parts[-3]} step {row.step:,} ({row.digest[:SHORT]})" for row in rows) if (
        rows
    ) else ""  # fmt: skip


def _table(title: str, rows: "Iterable[Row]", cells: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = [cells(row) for row in rows]
    if not lines:
        typer.echo(f"{title}: none")
        return
    table = Table(*lines[0], title=title, title_justify="left")
    for line in lines:
        table.add_row(*(Text(str(cell)) for cell in line.values()))
    Console(width=max(Console().width, 140)).print(table)


def _plain(row: Any) -> dict[str, Any]:
    return asdict(row) if is_dataclass(row) and not isinstance(row, type) else dict(row._mapping)


def _ranges(numbers: Sequence[int], most: int = 8) -> str:
    """As in: 3, 5 to 9, 12."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _when(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, default=str))
