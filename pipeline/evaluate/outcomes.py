"""What the trained encoder made of each query, in a Parquet file beside the evaluation: two encoders that were asked
the same can then be compared query by query.

A row a sample that was asked about; its columns are `id` (sha256 of the source's bytes) and the scores of
evaluation.json by name: 1 right, 0 wrong, between them the share of right answers, null where it was not asked.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluate.protocol import Evaluation
from pipeline.evaluate.scoring import Answered
from pipeline.ingest.store import Store
from pipeline.ingest.write import replaced


@dataclass(frozen=True)
class Outcomes:
    ids: np.ndarray  # (N,) of the samples
    right: dict[str, np.ndarray]  # by score: (N,) in [0, 1], NaN where not asked

    def paired(self, other: "Outcomes", name: str) -> tuple[np.ndarray, np.ndarray]:
        """What both made of the queries that both were asked for a score: (Q,) each, in the same order; of several with
        the same bytes, which a store without duplicate removal holds, the first."""
        _, mine, theirs = np.intersect1d(self.ids, other.ids, return_indices=True)
        pair = self.right[name][mine], other.right[name][theirs]
        asked = ~(np.isnan(pair[0]) | np.isnan(pair[1]))
        return pair[0][asked], pair[1][asked]


def outcomes_file(evaluation_file: Path) -> Path:
    return evaluation_file.with_suffix(".parquet")


def write_outcomes(evaluation_file: Path, judged: Evaluation, store: Store, answers: Sequence[Answered]) -> None:
    """Writes them; first of the two files, so that an evaluation is never without."""
    numbers = np.unique(np.concatenate([one.numbers for one in answers])) if answers else np.array([], np.int64)
    columns: dict[str, pa.Array] = {"id": store.column("id").take(pa.array(numbers))}
    for one in answers:
        right = np.full(len(numbers), np.nan, np.float32)
        right[np.searchsorted(numbers, one.numbers)] = one.right
        columns[one.score.name] = pa.array(right, from_pandas=True)
    table = pa.table(columns).replace_schema_metadata(_belongs(judged))
    with replaced(outcomes_file(evaluation_file)) as file:
        pq.write_table(table, file)


def read_outcomes(evaluation_file: Path, judged: Evaluation) -> Outcomes | None:
    """None: there are none (an older version judged), or they are of other weights or data."""
    with suppress(OSError, ValueError):
        table = pq.read_table(outcomes_file(evaluation_file))
        there = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if _belongs(judged).items() <= there.items():
            right = {name: table[name].to_numpy() for name in table.column_names if name != "id"}
            return Outcomes(table["id"].to_numpy(), right)
    return None


def _belongs(judged: Evaluation) -> dict[str, str]:
    return {"encoder": judged.encoder_digest, "store": judged.store_digest}
