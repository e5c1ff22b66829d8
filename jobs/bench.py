"""`feral bench`: measures feral itself. A benchmark is a module of tests/benchmarks/ with a `main`."""

import importlib
import inspect
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parent.parent
FOLDER = Path("tests", "benchmarks")

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """What a benchmark found. A cell that is None was not measured."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    note: str = ""


def bench(
    name: Annotated[str | None, typer.Argument(help="a benchmark; without one, all are listed")] = None,
    settings: Annotated[list[str] | None, typer.Argument(metavar="key=value …", help="sizes: images=2000 …")] = None,
    save: Annotated[Path | None, typer.Option(help="also write the tables to this file, as JSON")] = None,
) -> None:
    """Measures feral itself on this machine: speed against its floor, and how good the duplicate search is.

    Example: feral bench stream source=photos/ rounds=2 --save stream.json
    """
    from pipeline.settings import parse_overrides

    if name is None:
        for known in benchmarks():
            main = _main_of(known)
            typer.echo(f"{known}: {_first_line(main)}\n    {_settings_of(main)}")
        typer.echo("feral bench NAME key=value … runs one")
        return
    if save is not None and not save.absolute().parent.is_dir():
        raise ValueError(f"--save {save}: there is no folder {save.absolute().parent}")
    tables = run(name, parse_overrides(settings or []))
    machine = machine_now()
    typer.echo(f"{name} on {', '.join(f'{key} {value}' for key, value in machine.items())}")
    for table in tables:
        _print(table)
    if save is not None:
        found = {"benchmark": name, "settings": settings or [], "machine": machine}
        save.write_text(json.dumps(found | {"tables": [asdict(table) for table in tables]}, indent=1))


def benchmarks(root: Path = ROOT) -> list[str]:
    """Names of the benchmarks of a checkout.

    Raises:
        ValueError: there are none, for feral was installed without its tests.
    """
    if not (root / FOLDER).is_dir():
        raise ValueError(
            f"benchmarks run from a checkout, and {root} holds no {FOLDER}: get the source with `git clone`, run "
            "`make setup` there, and use its .venv/bin/feral"
        )
    return sorted(path.stem for path in (root / FOLDER).glob("*.py") if "\ndef main(" in path.read_text())


def run(name: str, settings: Mapping[str, object]) -> list[Table]:
    """Runs a benchmark.

    Raises:
        ValueError: no such benchmark or setting, or a value out of bounds.
    """
    from pydantic import ValidationError, validate_call

    from pipeline.settings import explain

    if name not in benchmarks():
        raise ValueError(f"no benchmark {name!r}; there are: {', '.join(benchmarks())}")
    main = _main_of(name)
    if wrong := sorted(settings.keys() - inspect.signature(main).parameters.keys()):
        raise ValueError(f"{name} has no setting {', '.join(wrong)}; there are: {_settings_of(main)}")
    try:
        return validate_call(main)(**settings)
    except ValidationError as error:
        raise ValueError(explain(error, "feral bench")) from None


def machine_now() -> dict[str, Cell]:
    """What the numbers depend on: processor, cores that may be used, load average of the last minute, versions."""
    import PIL

    model = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = round(os.getloadavg()[0], 2)
    return {"CPU": model, "cores": cores, "load": load, "Python": platform.python_version(), "Pillow": PIL.__version__}


def _main_of(name: str) -> Callable[..., list[Table]]:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(".".join((*FOLDER.parts, name))).main


def _settings_of(main: Callable[..., list[Table]]) -> str:
    return " ".join(f"{key}={value.default}" for key, value in inspect.signature(main).parameters.items())


def _first_line(function: Callable[..., object]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def _print(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn

    drawn = Drawn(box=box.SIMPLE_HEAD, title=table.title, title_justify="left", caption=table.note or None)
    for place, column in enumerate(table.columns):
        right = any(isinstance(row[place], int | float) for row in table.rows)
        drawn.add_column(column, justify="right" if right else "left", no_wrap=place == 0)
    for row in table.rows:
        drawn.add_row(*map(_shown, row))
    Console(width=None if sys.stdout.isatty() else 120).print(drawn)


def _shown(cell: Cell) -> str:
    """Three digits that count."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else cell
