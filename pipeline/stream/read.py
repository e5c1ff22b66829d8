"""From sample references to crops: what a data task does, with Ray or without."""

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from pipeline.ingest.decode import full_pixels
from pipeline.ingest.fetch import Fetch, sealed_bytes
from pipeline.ingest.places import Place
from pipeline.ingest.store import Store
from pipeline.stream.crops import CenterCrop, Geometry, crop, reduced, reductions
from ssl_models.batch import uniform

Columns = dict[str, np.ndarray]
_NUMBERS = ("number", "width", "height", "label", "visit")


class DamagedSample(ValueError):
    """The bytes of a sample are not those that were sealed. No restart helps; the message has the way out."""


@dataclass(frozen=True)
class Reader:
    """Reads, decodes and crops samples of a store. It is sent to data tasks, so it holds only small things."""

    geometry: Geometry
    seed: int = 0
    context_length: int | None = None  # tokens of a caption; None: no text
    place: Place | None = None  # where the files of an index in place lie; None: canonical shards
    local: Geometry | None = None  # further, smaller crops of the same images; None: there are none
    first_number: int = 0  # of the store's samples among those of all stores of a run

    @property
    def sample_bytes(self) -> int:
        """Of the crops of one sample."""
        geometries = [self.geometry, *([self.local] if self.local else [])]
        return sum(geometry.num_views * geometry.size**2 * 3 for geometry in geometries)

    def references(self, store: Store, numbers: np.ndarray, visits: np.ndarray) -> pa.Table:
        """What tasks need to know of each sample, one row a sample, in the order given; about 50 bytes each, and the
        captions. It reads these rows of the store, and no others."""
        rows = pa.array(numbers)
        places = store.places.take(rows)
        files, which = np.unique(places["shard"].to_numpy(), return_inverse=True)
        paths = pa.DictionaryArray.from_arrays(which.astype(np.int32), store.paths.take(pa.array(files)))
        columns = {"number": pa.array(numbers + self.first_number), "path": paths}
        columns["visit"] = pa.array(visits.astype(np.int64))
        columns |= {name: places[name] for name in places.column_names if name != "shard"}
        if self.context_length is not None:
            columns["captions"] = store.captions.take(rows)
        return pa.table(columns).replace_schema_metadata({"store": str(store.path)}).combine_chunks()

    def read(self, references: pa.Table) -> Columns:
        """Crops (B, V, S, S, 3) uint8 of the referred samples with number, visit, label (B,), retries (B,): how often
        reading failed and was tried again; and where asked for, tokens (B, L), local_crops (B, V', S', S', 3).

        Raises:
            DamagedSample: a sealed image is missing or not what it was; says which.
            ConnectionError: the storage failed, again and again.
        """
        rows = {name: references[name].to_numpy() for name in _NUMBERS}
        ids, visits = torch.from_numpy(rows["number"].copy()), torch.from_numpy(rows["visit"].copy())
        heights, widths = (torch.from_numpy(rows[name].astype(np.int64)) for name in ("height", "width"))
        wanted = {"crops": self.geometry} | ({"local_crops": self.local} if self.local else {})
        crops: Columns = {}
        boxes: dict[str, Tensor] = {}
        for name, geometry in wanted.items():
            crops[name] = np.empty((len(ids), geometry.num_views, geometry.size, geometry.size, 3), np.uint8)
            boxes[name] = geometry.boxes(visits, ids, heights, widths)
        by = torch.stack([reductions(boxes[name], geometry.size) for name, geometry in wanted.items()]).amin(dim=0)
        smaller = {name: reduced(boxes[name], by) for name in wanted}
        fetch = self._fetch(references)
        for row, image, is_reduced in self._images(references, fetch, by.tolist()):
            for name, geometry in wanted.items():
                box = (smaller if is_reduced else boxes)[name][row]
                crops[name][row] = crop(image, box, geometry.size).numpy()
        columns = crops | {name: rows[name].astype(np.int64) for name in ("number", "visit", "label")}
        columns["retries"] = fetch.failures
        if self.context_length is not None:
            columns["tokens"] = self._tokens(references["captions"].to_pylist(), ids, visits)
        return columns

    def _fetch(self, references: pa.Table) -> Fetch:
        path = references["path"].combine_chunks()
        used, files = np.unique(path.indices.to_numpy(), return_inverse=True)
        return Fetch(
            place=self.place,
            paths=path.dictionary.take(pa.array(used)).to_pylist(),
            files=files,
            offsets=references["offset"].to_numpy(),
            lengths=references["length"].to_numpy(),
            whole=sealed_bytes(references),
        )

    def _images(self, references: pa.Table, fetch: Fetch, by: list[int]) -> Iterator[tuple[int, Tensor, bool]]:
        """Each row's image (3, H, W) uint8, with the decoder's channels-last strides, in the order of storage; and
        whether it is smaller, by the row's factor of `by`."""
        plain = references["plain"].to_numpy() if self.place else np.ones(len(references))
        for row, data, fault in fetch:
            if fault is None:
                image = _decoded_smaller(data, by[row]) if plain[row] and by[row] > 1 else None
                yield row, _decoded(data, plain[row]) if image is None else image, image is not None
                continue
            number, file = references["number"][row].as_py() - self.first_number, references["path"][row].as_py()
            store = (references.schema.metadata or {}).get(b"store", b"STORE").decode()
            restore = "restore the file, or " if self.place else ""
            raise DamagedSample(
                f"sample {number} is damaged: {file} at byte {fetch.offsets[row]}: {fault}; {restore}`feral verify "
                f"{store} --quarantine` sets what is damaged aside, then the same command resumes"
            )

    def _tokens(self, captions: list[list[str]], ids: Tensor, visits: Tensor) -> np.ndarray:
        """One caption a sample and visit, chosen by (seed, visit, id); (B, context_length) int64."""
        assert self.context_length is not None
        draws = uniform(self.seed, visits, ids, 1, "caption")[:, 0].tolist()
        texts = [texts[int(draw * len(texts))] for texts, draw in zip(captions, draws, strict=True)]
        return tokenize(texts, self.context_length)


def image_of(store: Store, number: int) -> Tensor:
    """(3, H, W) uint8 of one sample, for people to look at. Raises as `Reader.read`."""
    reader = Reader(CenterCrop(1), place=store.place)
    references = reader.references(store, np.array([number]), np.zeros(1, np.int64))
    ((_, image, _),) = reader._images(references, reader._fetch(references), [1])
    return image


def tokenize(texts: list[str], context_length: int) -> np.ndarray:
    """CLIP's byte-pair tokens (B, context_length) int64; a long text is cut, its last token stays the end token."""
    return _tokenizer()(texts, context_length).numpy()


@lru_cache(maxsize=1)
def _tokenizer():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def _decoded_smaller(data: memoryview, by: int) -> Tensor | None:
    """(3, H / by, W / by) uint8 of a plain JPEG, rounded up, of which libjpeg computes only the lower frequencies. None
    where it does not decode."""
    with suppress(OSError, Image.DecompressionBombError):
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        image.draft("RGB", (image.width // by, image.height // by))
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return None


def _decoded(data: memoryview, plain: bool) -> Tensor:
    """(3, H, W) uint8, as curation saw it: what is no plain JPEG, by the guarded decoder, at half the speed.

    Raises:
        Refusal: bytes that were let in by another version of the decoder.
    """
    if plain:
        from torchvision.io import ImageReadMode, decode_jpeg

        with suppress(RuntimeError):
            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    # its size was within the bound of its curation, which may be above the usual one
    return torch.from_numpy(full_pixels(bytes(data), max_pixels=2**31)).permute(2, 0, 1)
