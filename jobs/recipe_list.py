"""`feral recipes` and `feral show`: what can be run, and every setting of it."""

from typing import Annotated

import typer


def recipes() -> None:
    """Lists the recipes.

    Example: feral recipes
    """
    from rich.console import Console
    from rich.table import Table

    from jobs.recipes import RECIPES

    table = Table("recipe", "what it is")
    for name, recipe in RECIPES.items():
        table.add_row(name, (recipe.__doc__ or "").strip().splitlines()[0])
    Console().print(table)
    typer.echo("feral show RECIPE lists its settings; feral pretrain RECIPE data.store=STORE runs it")


def show(
    recipe: Annotated[str, typer.Argument(help="one of `feral recipes`")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="key=value …", help="applied before showing")] = None,
) -> None:
    """Shows a recipe's paper, measured result and command, and every setting with its meaning.

    Example: feral show simclr_32px data.batch_size=512
    """
    import inspect

    from rich.console import Console
    from rich.table import Table

    from jobs.recipes import find_recipe
    from pipeline.settings import describe, parse_overrides

    function = find_recipe(recipe)
    experiment = function().override(parse_overrides(settings or []))
    typer.echo(inspect.getdoc(function))
    table = Table("setting", "value", "meaning")
    for key, value, meaning in describe(experiment):
        table.add_row(key, str(value), meaning)
    Console().print(table)
