"""Random numbers that belong to a sample, not to a generator: no order, block or number of workers changes them."""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch

from ssl_models.batch import uniform

_CHUNK = 2**22  # keys at a time: the hash holds a few int64 copies of them


def keys_of(texts: Iterable[str]) -> np.ndarray:
    """A 64-bit key for each text (an id, a concept): (N,) int64, the same on every machine and in every run."""
    digests = (hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)


def draw(seed: int, keys: np.ndarray, purpose: str) -> np.ndarray:
    """Uniform numbers (N,) float64 in [0, 1), each a function of (seed, key, purpose) alone."""
    parts = [
        uniform(seed, 0, torch.from_numpy(np.ascontiguousarray(keys[start : start + _CHUNK])), 1, purpose)[:, 0].numpy()
        for start in range(0, len(keys), _CHUNK)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def drawn_rows(seed: int, total: int, count: int, purpose: str) -> np.ndarray:
    """`count` different rows of 0..total-1, drawn without replacement, in the order of their draws: int64 (count,).

    Fewer rows are a prefix of more rows of the same seed and purpose.
    """
    rows, draws = np.empty(0, dtype=np.int64), np.empty(0)
    for start in range(0, total, _CHUNK):
        more = np.arange(start, min(start + _CHUNK, total), dtype=np.int64)
        rows, draws = np.concatenate([rows, more]), np.concatenate([draws, draw(seed, more, purpose)])
        best = np.argsort(draws, kind="stable")[:count]
        rows, draws = rows[best], draws[best]
    return rows
