"""`feral ledger retry` and `skip`: what a person decides of a dump that waits for one."""

from typing import Annotated

import typer

from jobs.promote import Where

Dump = Annotated[str, typer.Argument(metavar="DUMP", help="its number, or six digits of its digest")]
Why = Annotated[str, typer.Option(help="for those who read the ledger later")]


def retry(context: typer.Context, dump: Dump, reason: Why, ledger: Where = None) -> None:
    """Takes up again a dump that is held, quarantined, drifted or skipped: with the next tick, where it stopped. Where
    a dump was promoted or held, and its report failed, the report alone is tried again.

    Example: feral ledger retry 3 --reason "the labels of the test images were put right"
    """
    from pipeline.ledger.database import Ledger
    from pipeline.ledger.resolutions import retry as again
    from pipeline.promote import actor

    with Ledger.open(ledger or context.obj).writing() as connection:
        found, state = again(connection, dump, actor=actor(), reason=reason)
    typer.echo(f"dump {found.admit_no} ({found.dump_id[:12]}) was {found.state}, is {state}: the next tick goes on")


def skip(context: typer.Context, dump: Dump, reason: Why, ledger: Where = None) -> None:
    """Leaves a dump out, whatever it waits for; its images count as new when they come again.

    Example: feral ledger skip 3 --reason "one advertisement, a thousand times"
    """
    from pipeline.ledger.database import Ledger
    from pipeline.ledger.resolutions import skip as leave
    from pipeline.promote import actor

    with Ledger.open(ledger or context.obj).writing() as connection:
        found = leave(connection, dump, actor=actor(), reason=reason)
    typer.echo(f"dump {found.admit_no} ({found.dump_id[:12]}) was {found.state}, is skipped")
