"""What was found, as a page to look at."""

from pathlib import Path

import jinja2
from PIL import Image

from pipeline.ingest.decode import full_pixels
from pipeline.ingest.store import Store
from pipeline.ingest.write import replaced
from pipeline.report.pictures import picture, stored
from pipeline.search.searching import Hit
from pipeline.search.vectors import read_vectors


def write_page(path: Path, folder: Path, hits: list[Hit], image: Path | None, text: str | None) -> None:
    """One self-contained page: the query, then the images with their cosines. All pictures are decoded and made anew.

    Raises:
        ValueError, OSError: the images' files are no longer as they were embedded.
    """
    about = read_vectors(folder)
    store = Store(about.store)
    shown = [(hit, stored(store, hit.number)) for hit in hits]
    query = picture(Image.fromarray(full_pixels(image.read_bytes())), image.name) if image else None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent.parent / "report"),
        autoescape=True,  # captions, class names and paths are not ours
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("search.html").render(about=about, query=query, text=text, shown=shown)
    with replaced(path) as file:
        file.write(page.encode("utf-8", "backslashreplace"))
