"""The table of recipes. A recipe is a function that returns an Experiment; its docstring gives the paper, the result
that was measured (or "not yet measured"), the cost, and the command."""

import difflib
from collections.abc import Callable

from jobs.recipes.image_text import captioning_small, clip_small, siglip_small
from jobs.recipes.small_images import demo, mae_64px, simclr_32px
from pipeline.experiment import Experiment

RECIPES: dict[str, Callable[[], Experiment]] = {
    recipe.__name__: recipe for recipe in (demo, simclr_32px, mae_64px, clip_small, siglip_small, captioning_small)
}


def find_recipe(name: str) -> Callable[[], Experiment]:
    """The recipe called `name`.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.3)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"{name!r} is no recipe; {hint}there are {', '.join(RECIPES)} (`feral recipes`)")
    return RECIPES[name]
