"""The command `feral`. Each command is a module beside this one; heavy imports happen inside the commands."""

import sys
from typing import Annotated

import typer

from jobs import (
    bench,
    compare,
    continual,
    curate,
    demo,
    embed,
    evaluate,
    export,
    finetune,
    ledger,
    pretrain,
    promote,
    recipe_list,
    resolve,
    running,
    schedule,
    select,
    study,
    submit,
    sweep,
    tick,
    verify,
)
from pipeline.redaction import without_secrets


def _tell_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"feral {version('feral')}")
        raise typer.Exit


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def feral(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="print the version, and end")
    ] = False,
) -> None:
    """Self-supervised pretraining of vision encoders on image and image-text data as it comes."""


app.command("curate")(curate.curate)
app.command("policies")(select.policies)
app.command("select")(select.select)
app.command("block")(select.block)
app.command("verify")(verify.verify)
app.command("pretrain")(pretrain.pretrain)
app.command("continue")(continual.continue_)
app.command("cooldown")(continual.cooldown)
app.command("sweep")(sweep.sweep)
app.command("compare")(compare.compare)
app.command("study")(study.study)
app.command("finetune")(finetune.finetune)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(evaluate.report)
app.command("embed")(embed.embed)
app.command("search")(embed.search)
app.command("export")(export.export)
app.command("promote")(promote.promote)
app.command("rollback")(promote.rollback)
ledger.app.command("retry")(resolve.retry)
ledger.app.command("skip")(resolve.skip)
app.add_typer(ledger.app, name="ledger")
app.command("tick")(tick.tick)
app.command("watch")(tick.watch)
app.command("demo")(demo.demo)
app.command("recipes")(recipe_list.recipes)
app.command("studies")(study.studies)
app.command("show")(recipe_list.show)
app.command("bench")(bench.bench)
app.command("schedule")(schedule.schedule)
app.add_typer(running.app, name="jobs")
app.command("submit", context_settings=submit.CONTEXT)(submit.submit)


def main() -> None:
    """Runs a command. A `ValueError` is a message for a person: one line, exit status 2, no traceback."""
    try:
        app()
    except ValueError as error:
        typer.secho(f"error: {without_secrets(str(error))}", fg="red", err=True)
        sys.exit(2)


if __name__ == "__main__":  # a submitted job runs `python -m jobs.cli`
    main()
