"""Other loaders, as their own documentation sets them up, on the same JPEG files at natural size.

Each yields batches for ever (Ray's: for long enough): {"views": [tensor, …], "number": (B,), "tokens": (B, 77)}. Crops
alone are left as uint8, which is cheaper than the float that most people make. No loader pauses between epochs.
"""

import io
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from tests.benchmarks.stream_data import LITDATA, MOSAIC, PHOTOS, TARS, read_captions

Work = Literal["crop", "simclr", "clip"]
Decoding = Literal["pil", "tensor"]  # Pillow, or torchvision's decoder; and its transforms on pictures of that kind
Loaded = dict[str, Any]

CONTEXT_LENGTH = 77  # tokens
SCALES: dict[Work, tuple[float, float]] = {"crop": (0.08, 1), "simclr": (0.08, 1), "clip": (0.9, 1)}  # of crops
JITTER, SIGMA = (0.8, 0.8, 0.8, 0.2), (0.1, 2.0)  # of SimCLR
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAY_ROWS = 32  # of a batch that is mapped
AHEAD, RAY_AHEAD = 1500, 500  # images a second and CPU, more than is ever read: for those that want a length


@dataclass(frozen=True)
class Request:
    """What is wanted of a loader."""

    folder: Path  # with the data in all formats
    work: Work
    batch: int
    size: int  # side of a view, in pixels
    cpus: int  # 0: this process alone, for tests
    seconds: float  # it will be read at most so long

    @property
    def num_views(self) -> int:
        return 2 if self.work == "simclr" else 1

    @property
    def enough(self) -> int:
        """More images than can be read."""
        return int(self.seconds * max(1, self.cpus) * AHEAD)


class Prepare:
    """Makes what a batch is collated from of one picture and its caption."""

    def __init__(self, request: Request, decoding: Decoding) -> None:
        self.request, self.decoding = request, decoding
        self.augment = augmentation(request.work, request.size, decoding)
        if request.work == "clip":
            tokenizer()  # before processes are forked

    def __call__(self, image: Image.Image | Tensor, number: int, caption: str) -> Loaded:
        sample: Loaded = {"views": [self.augment(image) for _ in range(self.request.num_views)], "number": number}
        if self.request.work == "clip":
            sample["tokens"] = tokenizer()([caption], CONTEXT_LENGTH)[0]
        return sample

    def encoded(self, raw: bytes, number: int, caption: str) -> Loaded:
        """The same of a JPEG file's bytes."""
        return self(decoded(raw, self.decoding), number, caption)


def decoded(raw: bytes, decoding: Decoding) -> Image.Image | Tensor:
    if decoding == "pil":
        return Image.open(io.BytesIO(raw)).convert("RGB")
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(raw), dtype=torch.uint8), mode=ImageReadMode.RGB)


def augmentation(work: Work, size: int, decoding: Decoding) -> Callable[[Image.Image | Tensor], Tensor]:
    """torchvision's transforms: a uint8 crop, or a whole SimCLR view (Chen et al. 2020, appendix A), normalised."""
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(size, scale=SCALES[work], antialias=True)
    if work != "simclr":
        return v2.Compose([crop, v2.PILToTensor()]) if decoding == "pil" else crop
    kernel = max(3, size // 10 // 2 * 2 + 1)
    blur = PillowBlur() if decoding == "pil" else v2.GaussianBlur(kernel, SIGMA)
    return v2.Compose(
        [
            crop,
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*JITTER)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([blur], 0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


class PillowBlur:
    """As MoCo v2's and DINO's loaders blur: half the time of torchvision's."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*SIGMA)))


@cache
def tokenizer() -> Callable[[list[str], int], Tensor]:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


# ---- torch's DataLoader --------------------------------------------------------------------------------------------


def imagefolder(request: Request, decoding: Decoding) -> Iterator[Loaded]:
    """torchvision's ImageFolder; the sampler draws one permutation after the other."""
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image

    class Numbered(ImageFolder):
        def __getitem__(self, index: int) -> Loaded:
            path, _ = self.samples[index]
            number = int(Path(path).stem)
            return prepare(self.loader(path), number, captions[number])

    prepare, captions = Prepare(request, decoding), read_captions(request.folder)
    loader = {} if decoding == "pil" else {"loader": partial(decode_image, mode=ImageReadMode.RGB)}
    dataset = Numbered(str(request.folder / PHOTOS), **loader)
    return _loaded(dataset, request, sampler=RandomSampler(dataset, num_samples=request.enough))


def webdataset(request: Request, decoding: Decoding) -> Iterator[Loaded]:
    """Tars of the same files, a shuffle buffer of 1,000 files in each process."""
    import webdataset as wds

    prepare = Prepare(request, decoding)
    tars = [str(path) for path in sorted((request.folder / TARS).iterdir())]

    def sample(member: dict[str, Any]) -> Loaded:
        return prepare.encoded(member["jpg"], int(member["__key__"]), member["txt"].decode())

    dataset = wds.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).map(sample).repeat()
    return _loaded(dataset, request)


def litdata(request: Request, decoding: Decoding) -> Iterator[Loaded]:
    """LitData's chunks of the same files' bytes."""
    from litdata import StreamingDataset

    class Samples(StreamingDataset):
        def __getitem__(self, index: Any) -> Loaded:
            return prepare.encoded(**super().__getitem__(index))

    prepare = Prepare(request, decoding)
    return _loaded(Repeated(Samples(str(request.folder / LITDATA), shuffle=True)), request)


def mosaic(request: Request, decoding: Decoding) -> Iterator[Loaded]:
    """MosaicML streaming's shards of the same files' bytes."""
    from streaming import StreamingDataset

    class Samples(StreamingDataset):
        def __getitem__(self, index: Any) -> Loaded:
            return prepare.encoded(**super().__getitem__(index))

    prepare = Prepare(request, decoding)
    dataset = Samples(local=str(request.folder / MOSAIC), shuffle=True, batch_size=request.batch)
    return _loaded(Repeated(dataset), request)


class Repeated(IterableDataset):
    """Epoch after epoch, inside the process that loads."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Loaded]:
        while True:
            yield from self.dataset


def _loaded(dataset: Any, request: Request, **options: Any) -> Iterator[Loaded]:
    return iter(DataLoader(dataset, request.batch, num_workers=request.cpus, drop_last=True, **options))


# ---- Ray Data's own readers ----------------------------------------------------------------------------------------


def ray_images(request: Request, decoding: Decoding) -> Iterator[Loaded]:
    """`read_images`, which decodes with Pillow, then torchvision's transforms."""
    import ray

    captions = read_captions(request.folder)
    paths = [str(path) for path in sorted((request.folder / PHOTOS).rglob("*.jpg"))]
    data = ray.data.read_images(_repeated(paths, request.enough * RAY_AHEAD // AHEAD), include_paths=True, mode="RGB")

    def samples(prepare: Prepare, batch: Loaded) -> Iterator[Loaded]:
        for image, path in zip(batch["image"], batch["path"], strict=True):
            number = int(Path(path).stem)
            shown = Image.fromarray(image) if decoding == "pil" else torch.from_numpy(image).permute(2, 0, 1)
            yield prepare(shown, number, captions[number])

    return _mapped(data, samples, request, decoding)


def ray_webdataset(request: Request, decoding: Decoding) -> Iterator[Loaded]:
    """`read_webdataset` without its decoder, which is slower, then decoding and torchvision's transforms."""
    import ray

    tars = [str(path) for path in sorted((request.folder / TARS).iterdir())]
    repeats = request.enough * RAY_AHEAD // AHEAD * len(tars) // len(read_captions(request.folder))
    data = ray.data.read_webdataset(_repeated(tars, repeats), decoder=None)

    def samples(prepare: Prepare, batch: Loaded) -> Iterator[Loaded]:
        for raw, key, caption in zip(batch["jpg"], batch["__key__"], batch["txt"], strict=True):
            yield prepare.encoded(raw, int(key), caption.decode())

    return _mapped(data, samples, request, decoding)


def _repeated(items: list[str], count: int) -> list[str]:
    return items * -(-count // len(items))


def _mapped(
    data: Any, samples: Callable[[Prepare, Loaded], Iterator[Loaded]], request: Request, decoding: Decoding
) -> Iterator[Loaded]:
    def columns(batch: Loaded) -> dict[str, np.ndarray]:
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        made = list(samples(Prepare(request, decoding), batch))
        found = {f"view{i}": torch.stack([sample["views"][i] for sample in made]) for i in range(request.num_views)}
        if request.work == "clip":
            found["tokens"] = torch.stack([sample["tokens"] for sample in made])
        return {name: value.numpy() for name, value in found.items()} | {
            "number": np.array([sample["number"] for sample in made])
        }

    mapped = data.map_batches(columns, batch_size=RAY_ROWS, batch_format="numpy")
    for batch in mapped.iter_torch_batches(batch_size=request.batch, prefetch_batches=2, drop_last=True):
        yield {"views": [batch.pop(f"view{i}") for i in range(request.num_views)], **batch}


PEERS: dict[str, Callable[[Request, Decoding], Iterator[Loaded]]] = {
    "ImageFolder": imagefolder,
    "webdataset": webdataset,
    "LitData": litdata,
    "MosaicML": mosaic,
    "Ray read_images": ray_images,
    "Ray read_webdataset": ray_webdataset,
}
