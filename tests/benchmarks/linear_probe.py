"""What the linear probe costs on many embeddings: time, and memory beside scikit-learn's, which it equals."""

import multiprocessing
import tempfile
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from jobs.bench import Cell, Table
from pipeline.evaluate.probes import linear_predictions
from tests.benchmarks.processes import anonymous

CHUNK = 100_000  # rows


def main(
    images: Annotated[int, Field(ge=1_000)] = 1_000_000,
    dim: Annotated[int, Field(ge=2)] = 128,
    classes: Annotated[int, Field(ge=2)] = 10,
    queries: Annotated[int, Field(ge=1)] = 10_000,
    iterations: Annotated[int, Field(ge=1)] = 300,
    beside: bool = True,
) -> list[Table]:
    """The linear probe of `images` embeddings in a mapped file; beside=false leaves scikit-learn out.

    Each in a process of its own. Memory is what the process has of its own, mapped files left out, above what it had
    before the work began: the file's pages belong to the system, which takes them back when it wants.
    """
    with tempfile.TemporaryDirectory(prefix="bench") as temporary:
        bank = Path(temporary) / "bank.npy"
        _write(bank, images, dim, classes)
        works = {"feral, in blocks": _in_blocks} | ({"scikit-learn, all at once": _at_once} if beside else {})
        rows: list[tuple[Cell, ...]] = []
        for name, work in works.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append((name, *pool.apply(_measured, (work, bank, classes, queries, iterations))))
    columns = ("how", "seconds", "CPU seconds", "right %", "own memory MB", "with mapped pages MB")
    note = (
        f"{images:,} × {dim} embeddings in single precision ({images * dim * 4 / 1e6:,.0f} MB), {classes} classes, "
        f"{queries:,} queries, at most {iterations} iterations; feral's with the choice of C, scikit-learn's with the "
        f"C that was chosen; {torch.get_num_threads()} threads"
    )
    return [Table("linear probe", columns, rows, note)]


def _write(path: Path, images: int, dim: int, classes: int) -> None:
    """Classes that overlap, in dimensions that are correlated, as of an encoder."""
    generator = np.random.default_rng(0)
    centers, mixing = generator.normal(size=(classes, dim)), generator.normal(size=(dim, dim)) / dim**0.5
    written = np.lib.format.open_memmap(path, "w+", np.float32, (images, dim))
    for first in range(0, images, CHUNK):
        count = min(CHUNK, images - first)
        plain = centers[np.arange(first, first + count) % classes] + generator.normal(0, 4, (count, dim))
        written[first : first + count] = plain @ mixing
    written.flush()


def _measured(work: Any, path: Path, classes: int, queries: int, iterations: int) -> tuple[Cell, ...]:
    bank = np.load(path, mmap_mode="c")
    labels = np.arange(len(bank)) % classes
    work(bank[:1_000], labels[:1_000], bank[:10], 2)  # imports, and the memory of threads
    with anonymous() as memory:
        began, cpu = time.perf_counter(), time.process_time()
        answers = work(bank, labels, bank[:queries], iterations)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    right = 100 * float((answers == labels[:queries]).mean())
    return seconds, cpu, right, memory.grown / 1e6, memory.resident / 1e6


def _in_blocks(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, iterations: int) -> np.ndarray:
    answers, _ = linear_predictions(bank, labels, queries, iterations)
    return answers


def _at_once(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, iterations: int) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return probe.fit(bank, labels).predict(queries)
