"""What all pages have in common: how a template becomes one file that opens anywhere, and how it writes numbers."""

import base64
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from pipeline.ingest.write import replaced
from pipeline.train.goodput import duration, percent

TEMPLATES = Path(__file__).parent
SORT = (TEMPLATES / "sort.js").read_text()


@dataclass(frozen=True)
class Part:
    """A section's content, or why there is none."""

    content: Any = None
    missing: str = ""

    @classmethod
    def of(cls, make: Callable[[], Any]) -> "Part":
        try:
            return cls(make())
        except (OSError, ValueError) as error:
            return cls(missing=str(error))


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Writes a page, whole or not at all."""
    page = render(template, content)
    with replaced(path) as file:
        file.write(page.encode("utf-8", "backslashreplace"))  # a path that is no UTF-8 is in the commands
    return path


def render(template: str, content: Mapping[str, Any], **filters: Callable[..., Any]) -> str:
    """A page, self-contained and with everything escaped; templates know the filters below and `filters`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # captions, class names, errors and paths are not ours
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "thousands": "{:,}".format,
        "duration": duration,
        "brief": _brief,
        "share": percent,
        "date": date,
        "size": size,
        "json": json.dumps,
        **filters,
    }
    environment.globals |= {"sort": Markup(SORT), "sort_digest": _digest(SORT)}
    return environment.get_template(template).render(content)


def link_to(file: Path, directory: Path) -> str | None:
    """A link to a file from a page in `directory`, relative so that both can be moved; None: there is no file."""
    return quote(os.path.relpath(file, directory).replace(os.sep, "/")) if file.exists() else None


def _digest(script: str) -> str:
    """As a Content-Security-Policy names the one script that may run."""
    return f"sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}"


def _brief(seconds: float) -> str:
    return f"{seconds:.1f} s" if 0 < seconds < 9.95 else duration(seconds)


def date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
