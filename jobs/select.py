"""`feral select`, `feral policies`, `feral block`: what of a store is used, decided again without reading a picture."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.curate import Address, BlockListFile, EvaluationSets, History, Settings, inputs_of, policy_of

if TYPE_CHECKING:
    from pipeline.ingest.selection import Selection


def select(
    store: Annotated[Path, typer.Argument(help="a sealed store")],
    name: Annotated[str, typer.Argument(help="the new selection's name, for data.selection=NAME")],
    settings: Settings = None,
    policy: Annotated[
        str | None, typer.Option(help="none, clean, basic or strict; default: clean, with --from none")
    ] = None,
    based_on: Annotated[str | None, typer.Option("--from", help="narrow this selection, not the whole store")] = None,
    eval_set: EvaluationSets = None,
    history: History = None,
    block_list: BlockListFile = None,
    encoder: Annotated[str | None, typer.Option(help="a trained run: its embeddings are compared")] = None,
    semantic_share: Annotated[float | None, typer.Option(help="remove this share of semantic duplicates")] = None,
    semantic_epsilon: Annotated[float | None, typer.Option(help="… or all with a cosine above 1 - epsilon")] = None,
    balance: Annotated[int | None, typer.Option(help="keep so many, spread evenly over the embedding space")] = None,
    clusters: Annotated[str | None, typer.Option(help="of each level of --balance: 1000,100,10")] = None,
    concepts: Annotated[
        str | None, typer.Option(help='balance captions over the concepts of this file, or "auto": their own words')
    ] = None,
    concept_target: Annotated[int | None, typer.Option(help="samples to keep with --concepts, about")] = None,
    concept_min_count: Annotated[
        int | None, typer.Option(min=1, help='captions that make a word a concept of "auto"; default: 20')
    ] = None,
    concept_cap: Annotated[float | None, typer.Option(help="… or samples from which on a concept is cut")] = None,
    address: Address = None,
) -> None:
    """Make a selection of a store by another policy, without semantic duplicates, or balanced.

    A selection is immutable and has a digest; train on it with data.selection=NAME. Its data card shows every decision.

    Example: feral select stores/dump diverse --from default --encoder runs/first --semantic-share 0.2 --balance 1000000
    """
    from pydantic import ValidationError

    from pipeline.cluster import connected
    from pipeline.ingest.blocklist import block
    from pipeline.ingest.store import DATA_CARD, SELECTIONS, Store
    from pipeline.report.data_card import write_data_card
    from pipeline.select.selecting import Stages
    from pipeline.select.selecting import select as run
    from pipeline.settings import explain

    chosen, rest = policy_of(policy or ("none" if based_on else "clean"), settings or [])
    if rest:
        raise ValueError(f"{', '.join(rest)}: no threshold of a policy; `feral policies` lists all")
    for option, value, needed, is_there in (
        ("--concept-target", concept_target, "--concepts", concepts),
        ("--concept-cap", concept_cap, "--concepts", concepts),
        ("--concept-min-count", concept_min_count, "--concepts auto", concepts == "auto"),
        ("--clusters", clusters, "--balance", balance),
        ("--encoder", encoder, "--semantic-share, --semantic-epsilon or --balance",
         semantic_share or semantic_epsilon or balance),
    ):  # fmt: skip
        if value is not None and not is_there:
            raise ValueError(f"{option} does nothing without {needed}: add that, or leave {option} out")
    content: dict[str, object] = {"encoder": encoder}
    if concepts:
        content["concepts"] = {"path": None if concepts == "auto" else concepts, "target": concept_target,
                               "cap": concept_cap, "min_count": concept_min_count or 20}  # fmt: skip
    if semantic_share is not None or semantic_epsilon is not None:
        content["semantic"] = {"share": semantic_share, "epsilon": semantic_epsilon}
    if balance is not None:
        levels = [int(part) for part in clusters.split(",")] if clusters else []
        content["balance"] = {"target": balance, "clusters": levels}
    try:
        stages = Stages.model_validate(content)
    except ValidationError as error:
        raise ValueError(explain(error, "feral select --help")) from None
    opened = Store(store)
    inputs = inputs_of(eval_set, history, block_list)

    with connected(address, cpus=2) if stages.encoder else nullcontext():
        selection, new = run(
            opened, name, chosen, inputs, stages, based_on=based_on, on_stage=lambda stage: typer.echo(f"{stage} …")
        )
    block(opened.path, inputs.block_list)
    if new:
        write_data_card(opened, name)
    else:
        typer.echo(f"{name} is there already, from the same settings: nothing to do")
    dropped = sum(selection.dropped.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(selection.dropped.items(), key=_by_count))
    typer.echo(f"{selection.kept + dropped:,} in the store = {selection.kept:,} kept + {dropped:,} dropped; {reasons}")
    typer.echo(", ".join(f"{count:,} {split}" for split, count in selection.splits.items()))
    if selection.weights:
        typer.echo(_weights_line(selection))
    typer.echo(f"digest {selection.digest}; see {store / SELECTIONS / name / DATA_CARD}")
    typer.echo(f"next: feral pretrain RECIPE data.store={store} data.selection={name}")


def _by_count(item: tuple[str, int]) -> int:
    return -item[1]


def _weights_line(selection: "Selection") -> str:
    """As in: weights by origin: a ×2, b ×0.5; an epoch has 12,000 entries of 9,800 pictures."""
    from pipeline.ingest.samples import printable

    noted = ((stage, groups) for stage, groups in selection.notes.items() if stage.startswith("weights by "))
    stage, groups = next(noted, ("weights", {}))
    shown = ", ".join(f"{name} ×{factor:g}" for name, factor in list(groups.items())[:6])
    more = f" and {len(groups) - 6} more" if len(groups) > 6 else ""
    span = shown + more or f"{selection.weights['least']:g} to {selection.weights['most']:g}, as in the wider selection"
    return printable(
        f"{stage}: {span}; an epoch has {selection.entries:,} entries of {selection.splits['train']:,} pictures"
    )


def policies() -> None:
    """List the policies and every threshold, with its meaning.

    Example: feral policies
    """
    from rich.console import Console
    from rich.table import Table

    from pipeline.ingest.config import CurateConfig
    from pipeline.select.policy import PRESETS
    from pipeline.settings import describe

    console = Console()
    for name, (_, meaning) in PRESETS.items():
        console.print(f"[bold]{name}[/bold]: {meaning}")
    table = Table("threshold", *PRESETS, "meaning")
    values = [describe(policy) for policy, _ in PRESETS.values()]
    for rows in zip(*values, strict=True):
        key, _, meaning = rows[0]
        table.add_row(key, *(_shown(value) for _, value, _ in rows), meaning)
    console.print(table)
    table = Table("reading and decoding", "default", "meaning")
    for key, value, meaning in describe(CurateConfig()):
        table.add_row(key, _shown(value), meaning)
    console.print(table)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "any"
    return "-" if value is None or value == {} else f"{value}"


def block(
    store: Annotated[Path, typer.Argument(help="a sealed store")],
    pictures: Annotated[list[str], typer.Argument(help="sha256 of image files, phash:… , or files that list them")],
) -> None:
    """Take pictures out of use, for good: no run reads them again, from this moment on.

    The order of all other samples stays, so that runs can be resumed.

    Example: feral block stores/photos takedown.txt
    """
    from pipeline.ingest.blocklist import BLOCKLIST, blocked_numbers, parse_block_list, read_block_list
    from pipeline.ingest.blocklist import block as add
    from pipeline.ingest.store import Store

    opened = Store(store)
    files = [Path(text) for text in pictures if Path(text).is_file()]
    listed = parse_block_list([text for text in pictures if not Path(text).is_file()], "the command line")
    for file in files:
        listed |= read_block_list(file)
    whole = add(opened.path, listed)
    found = blocked_numbers(opened)
    typer.echo(
        f"{len(listed.lines):,} hashes added, {len(whole.lines):,} in {opened.path / BLOCKLIST}; "
        f"{len(found):,} of {opened.manifest.admitted:,} samples are blocked now"
    )
