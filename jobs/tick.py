"""`feral tick` and `feral watch`: a new dump lands, and by morning there is a better encoder, or a reason why not."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.pretrain import Address, StepProgress
from jobs.promote import AsJson, Where, show_gate

if TYPE_CHECKING:
    from pipeline.cycle.config import Cycle
    from pipeline.cycle.job import Pass, Step
    from pipeline.ledger.database import Ledger

File = Annotated[Path, typer.Argument(metavar="FILE", help="a production cycle, as of `feral tick --example`")]


def tick(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="a production cycle, as of --example")] = None,
    example: Annotated[bool, typer.Option("--example", help="print a file to start with, and do nothing")] = False,
    ledger: Where = None,
    as_json: AsJson = False,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="exit status 0 instead of 10, 20 and 30: only errors fail")
    ] = False,
    address: Address = None,
) -> None:
    """Does all that is due now, and ends: takes sealed deliveries, curates, trains on, cools down, evaluates, promotes
    or holds, reports. ROOT/index.html shows where all dumps stand. Safe at any frequency, twice at once, and after any
    kill: the next tick goes on.

    Exit status: 0 done, 10 nothing to do, 20 held by the gate, 30 a dump is quarantined or drifted, 1 error, 2 wrong
    usage; told to stop by a signal: 128 and its number, 143 for SIGTERM.

    Example: feral tick --example > production.toml; feral tick production.toml
    """
    from pipeline.cycle.job import EXIT
    from pipeline.cycle.lease import Told

    if example:
        typer.echo((Path(__file__).parent / "production.toml").read_text(), nl=False)
        return
    if file is None:
        raise ValueError("name the FILE of a production cycle; `feral tick --example > production.toml` makes one")

    def say(line: str) -> None:
        typer.echo(line, err=as_json)

    try:
        cycle, opened, found = _pass(file, ledger, address, say, to_stderr=as_json)
        closing = _closing(found, cycle, opened)
    except Told as told:
        say(f"{told}: what was running goes on with the next tick")
        raise typer.Exit(128 + told.signal) from None
    except ValueError as error:  # of the file, or of the ledger
        if as_json:
            typer.echo(json.dumps({"status": "error", "exit": 1, "errors": [str(error)]}))
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    code = EXIT[found.status]
    if as_json:
        typer.echo(json.dumps(_content(found, cycle, opened, closing, code), default=str))
    else:
        _show_gates(found)
        colours = {"done": "green", "held": "yellow", "quarantined": "yellow", "error": "red"}
        typer.secho(f"{found.status}: {closing}", fg=colours.get(found.status))
    if code and not (exit_zero and code != EXIT["error"]):
        raise typer.Exit(code)


def watch(
    file: File,
    every: Annotated[float, typer.Option(min=1, help="seconds between two ticks")] = 300,
    ledger: Where = None,
    address: Address = None,
) -> None:
    """Ticks until SIGTERM or Ctrl-C; a tick that fails is told, and the next one comes. The file is read each time.

    Told to stop, it saves what is being trained and leaves; the next watch or tick goes on from there.

    Example: feral watch production.toml --every 300
    """
    from pipeline.cycle.lease import Told, stoppable

    news = _News()
    with stoppable():
        try:
            while True:
                try:
                    cycle, opened, found = _pass(file, ledger, address, news.tell)
                    news.tell(f"{found.status}: {_closing(found, cycle, opened)}")
                except Exception as error:
                    news.tell(f"error: {str(error) or type(error).__name__}; the next tick tries again")
                news.turn()
                time.sleep(every)
        except Told as told:
            typer.echo(f"{told}: left; `feral watch {file}` goes on")


class _News:
    """Tells lines with their time, but for those that the tick before told, too."""

    def __init__(self) -> None:
        self._before: set[str] = set()
        self._now: set[str] = set()

    def tell(self, line: str) -> None:
        self._now.add(line)
        if line not in self._before:
            typer.echo(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

    def turn(self) -> None:
        self._before, self._now = self._now, set()


def _pass(
    file: Path, where: str | None, address: str | None, say: Callable[[str], None], *, to_stderr: bool = False
) -> "tuple[Cycle, Ledger, Pass]":
    from jobs.recipes import find_recipe
    from pipeline.cluster import connected
    from pipeline.cycle.config import read_cycle
    from pipeline.cycle.engine import run_pass
    from pipeline.cycle.stages import stages_of
    from pipeline.cycle.training import endless
    from pipeline.ledger.database import Ledger
    from pipeline.mirror.registry import keep_up
    from pipeline.report.cycle_page import FILE, write_cycle_page

    cycle = read_cycle(file)
    recipe = find_recipe(cycle.recipe)()
    cpus = endless(recipe, cycle).cluster.cpus  # what is wrong with it is said before anything starts
    opened = Ledger.open(where or cycle.ledger, create=True)
    stages = stages_of(recipe, lambda steps: StepProgress(steps, to_stderr=to_stderr))
    found = run_pass(cycle, opened, stages, tell=say, around=lambda: connected(address, cpus=cpus))
    if found.status != "nothing" or not (cycle.root / FILE).exists():
        sources = [source.name for source in cycle.sources]
        try:
            say(f"overview: {write_cycle_page(cycle.root, opened, sources, cycle.champion, file)}")
        except OSError as error:  # what was done stands in the ledger
            say(f"no overview was written: {error}")
    if found.steps:
        keep_up(opened, say)
    return cycle, opened, found


def _show_gates(found: "Pass") -> None:
    """The tables of the gate that held something."""
    from pipeline.gate import Check

    for step in found.steps:
        if step.kind == "held" and step.facts.get("gate"):
            show_gate([Check(**row) for row in step.facts["gate"]])


def _closing(found: "Pass", cycle: "Cycle", ledger: "Ledger") -> str:
    """What there is now, and what a person does next."""
    from pipeline.ledger.resolutions import HARMLESS

    def last(*kinds: str) -> "Step | None":
        return next((step for step in reversed(found.steps) if step.kind in kinds), None)

    if found.errors:
        return found.errors[0]
    if failed := last("error", "failed"):
        return f"dump {failed.admit_no}, {failed.stage}: {failed.said}"
    if bad := last("quarantined", "drifted"):
        return f"dump {bad.admit_no} waits for a person: {_resolve(ledger, bad.admit_no, 'put right')}"
    for finding in found.findings:
        if finding.kind in ("quarantined", "drifted") and finding.dump_id:
            return f"{finding.name} waits for a person: {_resolve(ledger, finding.dump_id[:12], 'put right')}"
    if held := last("held"):
        if held.output == HARMLESS:
            return f"{held.said}; {_champion(cycle, ledger)}"
        run = _candidate_of(held, ledger)
        return (
            f"dump {held.admit_no} waits for a person, for {held.said}; `{ledger.named}feral promote {run} --force "
            f"--reason …` promotes nevertheless, then {_resolve(ledger, held.admit_no, 'judged anew')}"
        )
    if found.status == "nothing":
        waiting = [finding for finding in found.findings if finding.kind == "waiting"]
        busy = last("busy", "waits")
        parts = [f"{len(waiting)} delivery(s) not whole yet"] if waiting else []
        parts += [f"dump {busy.admit_no}: {busy.said}"] if busy else []
        return f"{', '.join(parts) or 'no new delivery'}; {_champion(cycle, ledger)}"
    return _champion(cycle, ledger)


def _resolve(ledger: "Ledger", dump: object, what: str) -> str:
    feral = f"{ledger.named}feral"
    return f"`{feral} ledger retry {dump} --reason …` once it is {what}, or `{feral} ledger skip {dump} --reason …`"


def _candidate_of(step: "Step", ledger: "Ledger") -> str:
    from sqlalchemy import select

    from pipeline.ledger.tables import work

    found = select(work.c.output).where(
        work.c.dump_id == step.dump_id, work.c.stage == "cooldown", work.c.state == "done"
    )
    with ledger.reading() as connection:
        return str(connection.execute(found).scalar())


def _champion(cycle: "Cycle", ledger: "Ledger") -> str:
    from pipeline.ledger.promotion import names

    with ledger.reading() as connection:
        found = next((row for row in names(connection) if row.name == cycle.champion), None)
    if found is None:
        return f"there is no {cycle.champion} yet; `{ledger.named}feral ledger` shows every dump"
    run = Path(found.path).parent.parent
    return f"{cycle.champion} is {run} (step {found.step:,}); see {run / 'report.html'}"


def _content(found: "Pass", cycle: "Cycle", ledger: "Ledger", closing: str, code: int) -> dict[str, Any]:
    from pipeline.ledger.promotion import current
    from pipeline.report.cycle_page import FILE

    with ledger.reading() as connection:
        names = {name: current(connection, name) for name in (cycle.champion, cycle.base)}
    return {
        "status": found.status,
        "exit": code,
        "deliveries": [asdict(one) for one in found.findings],
        "stages": [asdict(one) for one in found.steps],
        "errors": found.errors,
        "names": names,
        "next": closing,
        "overview": str(cycle.root / FILE),
        "ledger": ledger.shown,
    }
