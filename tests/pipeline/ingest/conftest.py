"""Generated pictures and small sources."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def _picture(seed: int = 0, size: tuple[int, int] = (40, 30), format: str = "JPEG", **options: Any) -> bytes:
    """The bytes of a noisy RGB picture (size is width, height); another seed is another picture."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return _encode(Image.fromarray(pixels), format, **options)


def _encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _write(root: Path, files: dict[str, bytes | str]) -> Path:
    """Writes files by relative path below `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def _tar(members: dict[str, bytes | str]) -> bytes:
    """A tar of regular members, padded to 10,240 bytes as usual."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    return _picture


@pytest.fixture
def encode() -> Callable[..., bytes]:
    return _encode


@pytest.fixture
def write() -> Callable[..., Path]:
    return _write


@pytest.fixture
def tar() -> Callable[..., bytes]:
    return _tar
