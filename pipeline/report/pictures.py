"""The pictures of a report: what the encoder saw, what it finds alike, what its objective makes of unseen images.

All are decoded and encoded again, at a small size: no byte of a stored file comes into the page.
"""

import base64
import io
import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.evaluate.encoders import load_pair
from pipeline.evaluate.image_text import embed_texts
from pipeline.evaluate.protocol import Evaluation
from pipeline.experiment import Experiment
from pipeline.ingest.store import Store
from pipeline.stream.batches import captioned, to_batch
from pipeline.stream.crops import CenterCrop
from pipeline.stream.read import Reader, image_of, tokenize
from pipeline.stream.views import DeviceViews
from pipeline.train.checkpoints import Checkpoint
from pipeline.train.worker import open_batches
from ssl_models.batch import Batch, Step
from ssl_models.objectives.image_text import ImageTextObjective
from ssl_models.objectives.masked import MAE

SIDE = 224  # the longer side of a picture in the page, at most, in pixels
HARD = 48  # up to this side pixels are shown as squares
LOSSLESS = 64  # up to this side PNG, above JPEG
CAPTION = 160  # letters of a caption
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Picture:
    uri: str
    hard: bool  # few pixels, shown as squares
    text: str = ""  # stands under the picture, and for those who do not see it
    same: bool | None = None  # of the query's class; None: not known


@dataclass(frozen=True)
class Row:
    """Pictures that belong to the first one."""

    first: Picture
    others: tuple[Picture, ...]
    caption: str = ""


@dataclass(frozen=True)
class Retrieved:
    """An image and the captions nearest to it, each with its cosine and whether it is the image's own."""

    image: Picture
    own: str
    rank: int  # of the own caption, 1 = nearest
    among: int  # captions
    captions: tuple[tuple[str, float, bool], ...]


def picture(image: Image.Image, text: str = "", same: bool | None = None) -> Picture:
    """Encodes an image anew, at most SIDE pixels, as a data URI."""
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small = max(image.size) <= LOSSLESS
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if small else "JPEG", optimize=True, **({} if small else {"quality": 85}))
    content = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/{'png' if small else 'jpeg'};base64,{content}", max(image.size) <= HARD, text, same)


def training_views(experiment: Experiment, samples: int = 6) -> list[Row]:
    """Stored images of the first batch, each with its views as the encoder got them, and with the caption that was
    chosen for it where the objective reads text. Views are functions of (seed, epoch, sample): nothing is guessed."""
    batches, first = open_batches(experiment), experiment.training.continue_step
    references = batches.references(first, first + 1, rank=0, world_size=1)
    chosen = spread(np.arange(len(references)), samples)
    columns = batches.reader.read(references.take(chosen).combine_chunks())
    origins = [batches.origin(columns, row) for row in range(len(chosen))]
    device_views = experiment.device_views()
    views = [_pictures(device_views, view) for view in to_batch(columns, device_views, CPU).views]
    captions = [""] * len(chosen)
    if experiment.context_length is not None:
        for i, (store, number) in enumerate(origins):
            texts = store.column("captions")[number].as_py()
            fed = (tokenize(texts, experiment.context_length) == columns["tokens"][i]).all(1).argmax()
            captions[i] = _short(texts[fed])
    return [
        Row(stored(*origin), others, caption)
        for origin, others, caption in zip(origins, zip(*views, strict=True), captions, strict=True)
    ]


def neighbours(evaluation: Evaluation, store: Store) -> list[Row]:
    """The evaluation's example queries, each with the training images nearest to it, nearest first."""
    if evaluation.store_digest != store.manifest.digest:
        raise ValueError(f"{store.path} is not the store that was evaluated: its digest is another")
    labels = store.column("label").to_numpy()
    rows = []
    for query, found in evaluation.neighbours.items():
        same = [bool(labels[query] == labels[hit]) if min(labels[query], labels[hit]) >= 0 else None for hit in found]
        others = tuple(stored(store, hit, is_same) for hit, is_same in zip(found, same, strict=True))
        known = [is_same for is_same in same if is_same is not None]
        rows.append(Row(stored(store, query), others, f"{sum(known)} of {len(known)}" if known else ""))
    return rows


def agreement(rows: list[Row]) -> tuple[int, int] | None:
    """Neighbours of the query's class, and neighbours of which the class is known. None: of none."""
    known = [other.same for row in rows for other in row.others if other.same is not None]
    return (sum(known), len(known)) if known else None


def reconstructions(experiment: Experiment, checkpoint: Checkpoint, store: Store, samples: int = 8) -> list[Row]:
    """Held-back images, each with its patches hidden and with the hidden patches predicted. For MAE."""
    views, batch = _plain_batch(experiment, store, spread(_held_back(store), samples))
    objective = load_pair(experiment, checkpoint)["trained"]
    assert isinstance(objective, MAE)
    with torch.inference_mode():
        step = Step(number=0, progress=None, seed=experiment.training.seed)
        masked, filled = objective.reconstruct(batch.views[0], batch.ids, step)
    columns = [_pictures(views, images) for images in (batch.views[0], masked, filled)]
    return [Row(first, tuple(others)) for first, *others in zip(*columns, strict=True)]


def retrieved_captions(
    experiment: Experiment, checkpoint: Checkpoint, store: Store, samples: int = 4, bank: int = 300, k: int = 3
) -> list[Retrieved]:
    """Held-back images, each with the nearest of the first captions of `bank` held-back images. For image and text."""
    numbers = spread(captioned(store, _held_back(store)), bank)
    if not len(numbers):
        raise ValueError("no image of the test split has a caption")
    texts = [store.column("captions")[int(number)].as_py()[0] for number in numbers]
    queries = spread(np.arange(len(numbers)), samples)
    _, batch = _plain_batch(experiment, store, numbers[queries])
    objective = load_pair(experiment, checkpoint)["trained"]
    assert isinstance(objective, ImageTextObjective)
    assert experiment.context_length is not None
    with torch.inference_mode():
        images = objective.project_image(batch.views[0]).float().numpy()  # (queries, D)
    cosines = images @ embed_texts(objective, texts, experiment.context_length).T  # (queries, bank)
    found = []
    for query, row in zip(queries, cosines, strict=True):
        nearest = np.argsort(-row, kind="stable")[:k]
        found.append(
            Retrieved(
                image=stored(store, int(numbers[query])),
                own=_short(texts[query]),
                rank=1 + int((row > row[query]).sum()),
                among=len(numbers),
                captions=tuple((_short(texts[hit]), float(row[hit]), bool(hit == query)) for hit in nearest),
            )
        )
    return found


def stored(store: Store, number: int, same: bool | None = None) -> Picture:
    """A sample of the store, with its class, else its first caption."""
    label = store.column("label")[number].as_py()
    captions = store.column("captions")[number].as_py()
    text = store.manifest.classes[label] if label >= 0 else _short(captions[0]) if captions else ""
    return picture(_image(store, number), text, same)


def _image(store: Store, number: int) -> Image.Image:
    """A canonical picture; in place, the source's own bytes, if they still are those that were curated."""
    if store.place is None:
        return Image.open(io.BytesIO(store.read(number)), formats=("JPEG",))
    return Image.fromarray(image_of(store, number).permute(1, 2, 0).numpy())


def spread(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the values, evenly spread from the first to the last."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).astype(int))]


def _held_back(store: Store) -> np.ndarray:
    numbers = store.select("test")
    if not len(numbers):
        raise ValueError("the store has no test split")
    return numbers


def _plain_batch(experiment: Experiment, store: Store, numbers: np.ndarray) -> tuple[DeviceViews, Batch]:
    """Centre crops as evaluation sees them."""
    reader = Reader(CenterCrop(experiment.encoder.image_size), place=store.place)
    columns = reader.read(reader.references(store, numbers, np.zeros(len(numbers), dtype=np.int64)))
    views = experiment.device_views(plain=True)
    torch.set_num_threads(min(4, os.cpu_count() or 1))  # the reader left it at one
    return views, to_batch(columns, views, CPU)


def _pictures(views: DeviceViews, images: Tensor) -> list[Picture]:
    pixels = (views.denormalize(images) * 255).round().byte().permute(0, 2, 3, 1).numpy()  # (B, S, S, 3)
    return [picture(Image.fromarray(image)) for image in pixels]


def _short(text: str) -> str:
    return text if len(text) <= CAPTION else text[: CAPTION - 1] + "…"
