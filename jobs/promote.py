"""`feral promote` and `feral rollback`: which encoder is the champion."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.evaluate import RunName
from jobs.pretrain import Address

if TYPE_CHECKING:
    from pipeline.gate import Check
    from pipeline.promote import Promotion

HELD = 20  # exit status: the gate holds the candidate

Where = Annotated[
    str | None, typer.Option("--ledger", help="file or postgresql://…; default: FERAL_LEDGER, else runs/ledger.db")
]
Name = Annotated[str, typer.Option(help="the name that is moved")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object, for schedulers")]


def promote(
    run: RunName,
    name: Name = "champion",
    reason: Annotated[str, typer.Option(help="for those who read the ledger later; default: what the gate says")] = "",
    force: Annotated[bool, typer.Option("--force", help="promote against the gate; needs a --reason")] = False,
    on: Annotated[
        list[Path] | None,
        typer.Option(help="judge both on this sealed store first; may be given again. Default: as they were judged"),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="by how much a headline score may be lower than the champion's")
    ] = 0.01,
    ledger: Where = None,
    as_json: AsJson = False,
    address: Address = None,
) -> None:
    """Makes a run's encoder the champion, if it passes the gate. Exit status 20: it is held, and nothing is changed.

    Complete, not collapsed, no headline score worse than the champion's by more than the tolerance, one better:
    compared query by query, at 95 % (better: for all scores together). The first champion need only be complete and not
    collapsed.

    Example: feral promote runs/second && feral export champion --to timm
    """
    from contextlib import nullcontext

    from pipeline.cluster import connected
    from pipeline.ingest.store import Store
    from pipeline.ledger.database import Ledger
    from pipeline.ledger.names import find_run
    from pipeline.promote import promote as verb

    found, stores = find_run(run, ledger), [Store(path) for path in on or []]
    opened = Ledger.open(ledger, create=True)
    with connected(address, cpus=found.experiment.cluster.cpus) if stores else nullcontext():
        done = verb(
            opened, found, name=name, reason=reason, force=force, stores=stores, tolerance=tolerance,
            tell=lambda line: typer.echo(line, err=as_json),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(_content(done)))
    else:
        _show(done, opened.shown)
    if done.action == "held":
        raise typer.Exit(HELD)


def rollback(
    reason: Annotated[str, typer.Option(help="for those who read the ledger later")],
    name: Name = "champion",
    ledger: Where = None,
    as_json: AsJson = False,
) -> None:
    """Makes the checkpoint the champion again that was it before, once every byte of it was compared with what was
    promoted. A second rollback goes one further back.

    Example: feral rollback --reason "misses small birds"
    """
    from pipeline.ledger.database import Ledger
    from pipeline.ledger.promotion import current, roll_back
    from pipeline.mirror.registry import keep_up
    from pipeline.promote import actor

    opened = Ledger.open(ledger)
    with opened.writing() as connection:
        before = current(connection, name)
        found = roll_back(connection, name, actor=actor(), reason=reason)
    keep_up(opened, lambda line: typer.echo(line, err=as_json))
    if as_json:
        facts = {"action": "rolled back", "name": name, "run": str(found.run), "checkpoint": found.digest}
        typer.echo(json.dumps(facts | {"before": before, "reason": reason}))
    else:
        assert before is not None
        typer.echo(f"{name} is {found.run} again ({found.path.name}, {found.digest[:12]}); it was {before[:12]}")


def _content(done: "Promotion") -> dict:
    return {
        "action": done.action,
        "name": done.name,
        "run": str(done.run),
        "checkpoint": done.checkpoint,
        "before": done.champion,
        "reason": done.reason,
        "held_for": done.gate.held_for if done.gate else [],
        "gate": done.gate.rows() if done.gate else [],
    }


def _show(done: "Promotion", ledger: str) -> None:
    if done.gate is not None:
        show_gate(done.gate.checks)
    weights = f"{done.run} ({done.checkpoint[:12]})"
    if done.action == "unchanged":
        typer.echo(f"{weights}: {done.reason}")
    elif done.action == "held":
        assert done.gate is not None
        typer.secho(f"held: {weights} is not {done.name}, for {', '.join(done.gate.held_for)}", fg="yellow")
        typer.echo(f"{done.reason}; --force --reason … promotes nevertheless; noted in {ledger}")
    else:
        forced = " against the gate" if done.action == "forced" else ""
        before = f"; before: {done.champion[:12]}, to which `feral rollback` returns" if done.champion else ""
        typer.secho(f"{done.name} is {weights}{forced}{before}", fg="green")
        typer.echo(f"{done.reason}; noted in {ledger}")


def show_gate(checks: "Sequence[Check]") -> None:
    from rich.console import Console
    from rich.table import Table

    def share(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{100 * value:{sign}.1f}"

    table = Table("check", "of", "champion %", "candidate %", "difference", "95 %", "bound", "", "")
    for check in checks:
        interval = " … ".join(share(end, "+") for end in check.interval) if check.interval else ""
        bound = "" if check.bound is None else f"{'>' if check.kind == 'target' else '≥'} {share(check.bound, '+')}"
        passed = "passed" if check.passed else "no" if check.kind == "target" else "FAILED"
        table.add_row(
            check.kind, check.what, share(check.champion), share(check.candidate), share(check.difference, "+"),
            interval, bound, passed, check.note,
        )  # fmt: skip
    console = Console()
    Console(width=max(console.width, 140)).print(table, markup=False)
