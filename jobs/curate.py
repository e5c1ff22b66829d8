"""`feral curate`: let a source of images in, and seal what is good as a store."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from pipeline.ingest.config import CurateConfig
    from pipeline.ingest.running import Progress
    from pipeline.ingest.store import Store
    from pipeline.select.policy import Inputs, Policy
    from ssl_models.config import Config

ConfigType = TypeVar("ConfigType", bound="Config")
SECONDS_BETWEEN_LINES = 10  # where there is no terminal

PolicyName = Annotated[str, typer.Option("--policy", help="none, clean, basic or strict: see `feral policies`")]
EvaluationSets = Annotated[
    list[Path] | None,
    typer.Option("--eval-set", help="a store whose pictures, and their near copies, are kept out"),
]
History = Annotated[
    list[Path] | None,
    typer.Option(
        "--history", help="a store that came before: its pictures are old, and no copy of its test split is used"
    ),
]
BlockListFile = Annotated[Path | None, typer.Option("--block-list", help="hashes of pictures never to be used")]
Settings = Annotated[list[str] | None, typer.Argument(help="of `feral policies`: min_side=64 near_distance=2 …")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to run on; default: RAY_ADDRESS, else this machine")]


def curate(
    source: Annotated[str, typer.Argument(help="a folder of images, tars or Parquet; a list (.jsonl, .csv); s3://…")],
    to: Annotated[Path, typer.Option("--to", help="folder of the new store")],
    settings: Settings = None,
    policy: PolicyName = "clean",
    eval_set: EvaluationSets = None,
    history: History = None,
    block_list: BlockListFile = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="write no copy, only an index of the source")] = False,
    compressed: Annotated[bool, typer.Option("--compressed", help="read .tar.gz and the like")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the store that is at --to")] = False,
    address: Address = None,
) -> None:
    """Decode, check, measure and deduplicate a source of images into a sealed store; nothing is left out uncounted.

    A killed curation goes on where it stopped when the same command is given again. STORE/data_card.html shows all that
    was decided.

    Example: feral curate s3://bucket/dump --to stores/dump --policy basic min_side=128 holdout=0.05
    """
    from pipeline.ingest.config import CurateConfig

    store_path(to)
    chosen, rest = policy_of(policy, settings or [])
    config = changed(CurateConfig(in_place=in_place, compressed=compressed), rest)
    inputs = inputs_of(eval_set, history, block_list)
    curate_and_tell(source, to, config, chosen, inputs, overwrite=overwrite, address=address)


def store_path(text: str | Path) -> Path:
    """Where a store lies, absolute.

    Raises:
        ValueError: a URI. (A `Path` of one has lost a slash.)
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(text)):
        raise ValueError(
            f"a store lies on a file system that all nodes mount, not at {text}; `feral curate s3://… --to FOLDER "
            "--in-place` leaves the images in the bucket"
        )
    return Path(text).absolute()


def policy_of(name: str, arguments: list[str]) -> tuple["Policy", dict[str, Any]]:
    """A preset with those of the key=value arguments that are its thresholds; the others.

    Raises:
        ValueError: no such preset, or a value out of bounds.
    """
    from pipeline.select.policy import PRESETS, Policy
    from pipeline.settings import parse_overrides

    if name not in PRESETS:
        raise ValueError(f"--policy {name!r} is unknown: choose one of {', '.join(PRESETS)} (`feral policies`)")
    values = parse_overrides(arguments)
    own = {key: values.pop(key) for key in list(values) if key in Policy.model_fields}
    return changed(PRESETS[name][0], own), values


def changed(config: ConfigType, values: dict[str, Any]) -> ConfigType:
    """A config with some fields replaced, or a ValueError in words."""
    import difflib

    from pydantic import ValidationError

    from pipeline.settings import explain

    for key in values:
        if key not in type(config).model_fields:
            close = difflib.get_close_matches(key, type(config).model_fields, n=1)
            hint = f"did you mean {close[0]}?" if close else "`feral policies` lists all"
            raise ValueError(f"{key}: no such setting; {hint}")
    try:
        return type(config).model_validate({**config.model_dump(), **values})
    except ValidationError as error:
        raise ValueError(explain(error, "feral policies")) from None


def inputs_of(eval_set: list[Path] | None, history: list[Path] | None, block_list: Path | None) -> "Inputs":
    """What else decides; every store and list is read before anything starts."""
    from pipeline.ingest.blocklist import BlockList, read_block_list
    from pipeline.ingest.store import Store
    from pipeline.select.policy import Inputs

    for path in [*(eval_set or []), *(history or [])]:
        Store(path)
    if block_list is not None and not block_list.is_file():
        raise ValueError(f"--block-list {block_list}: no such file")
    listed = read_block_list(block_list) if block_list else BlockList()
    return Inputs(tuple(eval_set or ()), tuple(history or ()), listed)


def curate_and_tell(
    source: str | Path, to: Path, config: "CurateConfig", policy: "Policy | None" = None,
    inputs: "Inputs | None" = None, *, overwrite: bool = False, address: str | None = None,
) -> None:  # fmt: skip
    """Curates with a live funnel, and ends with five lines.

    Raises:
        typer.Exit: stopped by Ctrl-C (status 130).
    """
    from pipeline.curate import CLEAN
    from pipeline.curate import curate as run
    from pipeline.ingest.store import Store

    try:
        with _live() as on_progress:
            run(
                source, to, config, policy=policy or CLEAN, inputs=inputs, on_progress=on_progress, overwrite=overwrite,
                address=address,
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo("stopped; what is done is kept, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    for line in summary(Store(to), to):
        typer.echo(line)


def summary(store: "Store", shown_as: Path) -> Iterator[str]:
    """Five lines: the account, what was refused, what was damaged, what there is now, what to do next."""
    from pipeline.ingest.samples import printable
    from pipeline.ingest.store import DATA_CARD

    manifest = store.manifest
    lost = f", {manifest.lost:,} lost of {manifest.declared:,} declared" if manifest.declared else ""
    refused = sum(manifest.refused.values())
    yield f"{manifest.seen:,} seen = {manifest.kept:,} kept + {refused:,} refused{lost} → {store.path}"
    reasons = sorted(manifest.refused.items(), key=lambda item: -item[1])
    most = ", ".join(f"{count:,} {reason}" for reason, count in reasons[:6])
    more = f" and {len(reasons) - 6} more reasons" if len(reasons) > 6 else ""
    yield f"refused: {most or 'nothing'}{more}; see {shown_as / DATA_CARD}"
    yield printable(damage_line(store))
    dropped = f" ({manifest.captions_dropped:,} captions over 8 KB dropped)" if manifest.captions_dropped else ""
    splits = ", ".join(f"{count:,} {split}" for split, count in manifest.splits.items())
    seconds = sum(value for name, value in manifest.seconds.items() if not name.startswith("tasks"))
    yield (
        f"{splits}; {len(manifest.classes)} classes, {manifest.captioned:,} with captions{dropped}; {seconds:.1f} s, "
        f"{manifest.seen / seconds:,.0f} images/s"
    )
    yield f"next: feral pretrain RECIPE data.store={shown_as}"


def damage_line(store: "Store") -> str:
    """The damage to a store's source in one line, worst first."""
    damaged = sorted(store.manifest.damaged, key=lambda damage: -(damage.lost or 0))
    if not damaged:
        return "damaged: nothing"
    first = damaged[0]
    lost = "an unknown number" if first.lost is None else f"{first.lost:,}"
    many = f"{len(damaged):,} places, such as " if len(damaged) > 1 else ""
    return f"damaged: {many}{first.shard} ({first.saved:,} samples saved, {lost} lost): {first.why}; fetch it again"


@contextmanager
def _live() -> Iterator[Callable[["Progress"], None]]:
    """A callback that shows the funnel: live on a terminal, else a line every ten seconds."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    started = last = time.monotonic()
    with Live(console=console, transient=True, refresh_per_second=4) as live:

        def show(progress: "Progress") -> None:
            nonlocal last
            if progress.sealed_before:
                typer.echo("sealed already from the same source with the same settings: nothing to do")
                return
            now = time.monotonic()
            if console.is_terminal:
                live.update(funnel(progress, now - started))
            elif now - last >= SECONDS_BETWEEN_LINES:
                typer.echo(f"{progress.seen:,} seen, {progress.admitted:,} let in", err=True)
                last = now

        yield show


def funnel(progress: "Progress", seconds: float) -> Any:
    """The funnel so far, as a table for a terminal."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    whole = progress.declared or progress.seen or 1
    speed = f"{progress.seen / seconds:,.0f} images/s" if progress.seen else "starting Ray"
    resumed = f", {progress.resumed} units were done before" if progress.resumed else ""
    of = f"of {progress.declared:,}" if progress.declared else ""
    table.add_row(progress.stage, "", "", f"{speed}, {seconds:,.0f} s{resumed}")
    table.add_row("seen", f"{progress.seen:,}", ProgressBar(whole, progress.seen, width=30), of)
    table.add_row("let in", f"{progress.admitted:,}", ProgressBar(whole, progress.admitted, width=30), "")
    for reason, count in progress.refused.most_common(6):
        table.add_row(f"  {reason}", f"{count:,}", ProgressBar(whole, count, width=30), "")
    return table
