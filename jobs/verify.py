"""`feral verify`: is a store still what was sealed, and what to do if it is not."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.ingest.store import Store
    from pipeline.ingest.verify import Verdict

SHOWN = 5  # damaged samples
SECONDS_BETWEEN_LINES = 10  # where there is no terminal


def verify(
    store: Annotated[Path, typer.Argument(help="a sealed store")],
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="put damaged samples on the block-list: training goes on without them")
    ] = False,
) -> None:
    """Read a whole store and compare every byte with what was sealed. Exit status 1: there is damage not set aside.

    A quarantine takes out of use what is damaged, and whole copies of the same files; the order of all other samples
    stays, so that runs can be resumed.

    Example: feral verify stores/photos --quarantine
    """
    from pipeline.ingest.store import Store
    from pipeline.ingest.verify import quarantine as set_aside
    from pipeline.ingest.verify import verify as run

    opened = Store(store)
    with _progress() as on_progress:
        try:
            verdict = run(opened, on_progress)
        except ConnectionError as error:
            raise ValueError(str(error)) from error
    if quarantine:
        set_aside(opened, verdict.loose(opened.blocked))
    for line in summary(opened, verdict, store):
        typer.echo(line)
    if verdict.loose(opened.blocked) or verdict.faults:
        raise typer.Exit(1)


def summary(store: "Store", verdict: "Verdict", shown_as: Path) -> Iterator[str]:
    """The account, why samples are damaged and which, and what to do."""
    from pipeline.ingest.samples import printable
    from pipeline.ingest.store import BLOCKLIST, QUARANTINE
    from pipeline.ingest.verify import whole_again

    yield from map(printable, verdict.faults)
    if not verdict.checked:
        yield f"{verdict.samples:,} samples were not checked: what says where they are is damaged itself"
        return
    blocked, damaged = store.blocked, verdict.damaged
    loose = verdict.loose(blocked)
    aside = f" ({len(damaged) - len(loose):,} of them set aside)" if damaged else ""
    yield f"{verdict.samples:,} samples = {verdict.whole:,} whole + {len(damaged):,} damaged{aside}"
    for why, count in Counter(sample.why for sample in damaged).most_common():
        yield printable(f"  {count:,}: {why}")
    for sample in damaged[:SHOWN]:
        yield printable(f"  sample {sample.number}: {sample.file} at byte {sample.offset}: {sample.why}")
    if len(damaged) > SHOWN:
        yield f"  … and {len(damaged) - SHOWN:,} more"
    if again := whole_again(store, verdict, blocked):
        yield (
            f"{again:,} whole samples are blocked with damaged ones, as copies or since before they were restored: see "
            f"{shown_as / BLOCKLIST} and {QUARANTINE}"
        )
    if loose:
        yield f"next: restore the files, or `feral verify {shown_as} --quarantine` to train without these samples"


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A callback that shows how far it is: live on a terminal, else a line every ten seconds."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    last = time.monotonic()
    with Live(console=console, transient=True, refresh_per_second=4) as live:

        def show(done: int, total: int) -> None:
            nonlocal last
            text = f"{done:,} of {total:,} samples read"
            if console.is_terminal:
                live.update(text)
            elif time.monotonic() - last >= SECONDS_BETWEEN_LINES:
                typer.echo(text, err=True)
                last = time.monotonic()

        yield show
