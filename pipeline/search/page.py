"""What was found, as a page to look at."""

from pathlib import Path

from PIL import Image

from pipeline.ingest.decode import full_pixels
from pipeline.ingest.store import Store
from pipeline.report.page import write_page
from pipeline.report.pictures import picture, stored
from pipeline.search.searching import Hit
from pipeline.search.vectors import read_vectors


def write_found(path: Path, folder: Path, hits: list[Hit], image: Path | None, text: str | None) -> None:
    """One self-contained page: the query, then the images with their cosines. All pictures are decoded and made anew.

    Raises:
        ValueError, OSError: the images' files are no longer as they were embedded.
    """
    about = read_vectors(folder)
    store = Store(about.store)
    shown = [(hit, stored(store, hit.number)) for hit in hits]
    query = picture(Image.fromarray(full_pixels(image.read_bytes())), image.name) if image else None
    write_page(path, "search.html", {"about": about, "query": query, "text": text, "shown": shown})
