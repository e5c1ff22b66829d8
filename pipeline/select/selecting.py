"""Making a selection: a policy over the index of a store, then stages that look at captions or embeddings."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.ingest.selection import (
    Selection,
    check_name,
    check_selection,
    read_decisions,
    read_selection,
    selections_of,
    write_selection,
)
from pipeline.ingest.store import DEFAULT, INDEX, SELECTIONS, Store, file_sha256
from pipeline.select.blocks import EmbeddingBlocks
from pipeline.select.concepts import balance, cap_for, concepts_from, match_concepts
from pipeline.select.draws import keys_of
from pipeline.select.hierarchical import hierarchical_kmeans, hierarchical_sample
from pipeline.select.kmeans import kmeans
from pipeline.select.policy import Funnel, Inputs, Policy, apply
from pipeline.select.semantic import closest_earlier, epsilon_for, removed_shares, survivors
from pipeline.select.weights import weigh
from ssl_models.config import Config

SEED = 0  # of every draw: a selection is a function of the store and its settings
_PROBES = 2  # clusters in which a sample looks for its like: 0.996 of what brute force finds
EPSILONS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # for which the card says what would go


class ConceptsConfig(Config):
    """Balanced captions (MetaCLIP's idea): a concept is cut to about `cap` samples."""

    path: str | None = Field(None, description="text file, a concept a line; None: the words and pairs of the captions")
    target: int | None = Field(None, ge=1, description="samples to keep, about; sets the cap")
    cap: float | None = Field(None, gt=0, description="samples from which on a concept is cut")
    min_count: int = Field(20, ge=1, description="captions that must hold a word to make it a concept; without a file")

    @model_validator(mode="after")
    def _one(self) -> "ConceptsConfig":
        if (self.target is None) == (self.cap is None):
            raise ValueError("concepts: give either --concept-target or --concept-cap")
        return self


class SemanticConfig(Config):
    """Semantic duplicates (SemDeDup): samples whose embeddings nearly agree."""

    share: float | None = Field(None, gt=0, lt=1, description="share of the samples to remove")
    epsilon: float | None = Field(None, gt=0, lt=1, description="remove where the cosine is above 1 - epsilon")
    clusters: int | None = Field(None, ge=1, description="of the k-means; None: one for each 1,000 samples")

    @model_validator(mode="after")
    def _one(self) -> "SemanticConfig":
        if (self.share is None) == (self.epsilon is None):
            raise ValueError("semantic duplicates: give either --semantic-share or --semantic-epsilon")
        return self


class BalanceConfig(Config):
    """Balanced sampling by hierarchical k-means: every region of the embedding space gives alike."""

    target: int = Field(ge=1, description="samples to keep")
    clusters: tuple[int, ...] = Field((), description="of each level, falling; none: N/50, N/500, ... down to 8")

    def sizes(self, count: int) -> tuple[int, ...]:
        """Clusters of each level for `count` samples."""
        return (
            self.clusters
            or tuple(size for power in range(6) if (size := count // (50 * 10**power)) >= 8)
            or (max(1, count // 50),)
        )


class Stages(Config):
    """What is done after the policy, in this order."""

    concepts: ConceptsConfig | None = None
    semantic: SemanticConfig | None = None
    balance: BalanceConfig | None = None
    encoder: str | None = Field(None, description="run whose encoder makes the embeddings")

    @model_validator(mode="after")
    def _encoder(self) -> "Stages":
        if (self.semantic or self.balance) and not self.encoder:
            raise ValueError("semantic duplicates and balancing compare embeddings: name a trained run with --encoder")
        return self


def select_new(path: Path, policy: Policy, inputs: Inputs, classes: tuple[str, ...] = ()) -> Selection:
    """The default selection of a store that is not sealed yet: its index, with labels of `classes`, lies at `path`."""
    funnel = Funnel.over(path / INDEX)
    apply(policy, inputs, funnel)
    weigh(policy, funnel, classes)
    return write_selection(
        path, DEFAULT, file_sha256(path / INDEX), funnel.table["id"], funnel.table["split"], funnel.decisions,
        based_on=None, policy=policy.model_dump(mode="json"), inputs=inputs.digests, notes=funnel.notes,
    )  # fmt: skip


def select(
    store: Store,
    name: str,
    policy: Policy,
    inputs: Inputs,
    stages: Stages,
    *,
    based_on: str | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> tuple[Selection, bool]:
    """Makes the selection `name` of a store, from all samples or from those of the selection `based_on`, whose weights
    they keep.

    Returns:
        The selection, and whether it is new: what is there already from the same settings, undamaged, is left alone.

    Raises:
        ValueError: the name is taken by a selection made otherwise, nothing would be kept, or a stage cannot work.
    """
    check_name(name)
    parent = read_selection(store, based_on) if based_on else None
    settings = {"policy": policy.model_dump(mode="json"), "stages": stages.model_dump(mode="json")}
    known = inputs.digests | _digests_of(stages)
    if name in selections_of(store.path):
        old = read_selection(store, name)
        if (old.policy, old.inputs, old.based_on) != (settings, known, parent and parent.digest):
            raise ValueError(
                f"{store.path} has a selection {name!r}, made otherwise, and none ever changes: choose a name"
            )
        if not check_selection(store, name):
            return old, False
    funnel = Funnel.over(store.path / INDEX)
    if based_on:
        decisions = read_decisions(store, based_on)
        funnel.reasons = np.array(decisions["reason"].to_pylist(), object)
        funnel.because = decisions["because"].fill_null(-1).to_numpy().copy()
        if parent and parent.weights:
            funnel.weights = decisions["weight"].fill_null(1).to_numpy().astype(np.float64)
    on_stage("policy")
    apply(policy, inputs, funnel)
    if stages.concepts:
        on_stage("concepts")
        _concepts(stages.concepts, funnel)
    if stages.semantic or stages.balance:
        _by_embedding(store, stages, funnel, store.path / SELECTIONS / name, on_stage)
    if not len(funnel.rows):
        raise ValueError("nothing would be kept: use milder settings")
    weigh(policy, funnel, store.manifest.classes)
    return write_selection(
        store.path, name, store.manifest.index_sha256, funnel.table["id"], funnel.table["split"], funnel.decisions,
        based_on=parent and parent.digest, policy=settings, inputs=known, notes=funnel.notes,
    ), True  # fmt: skip


def _digests_of(stages: Stages) -> dict[str, str]:
    """What the files that a stage reads hold."""
    found = {}
    if stages.concepts and stages.concepts.path:
        path = Path(stages.concepts.path)
        if not path.is_file():
            raise ValueError(f"no file of concepts at {path}: write one concept a line")
        found["concepts"] = file_sha256(path)
    if stages.encoder:
        checkpoint = _checkpoint(stages.encoder)
        found["encoder"] = file_sha256(checkpoint.path / "objective.safetensors")
    return found


def _checkpoint(run: str) -> Any:
    from pipeline.run import Run  # here: curation itself needs no torch

    checkpoint = Run(Path(run)).newest_checkpoint()
    if checkpoint is None:
        raise ValueError(f"{run} has no whole checkpoint: name the directory of a trained run with --encoder")
    return checkpoint


def _concepts(config: ConceptsConfig, funnel: Funnel) -> None:
    """Draws among training samples only: an evaluation on fewer test samples would be another one."""
    train = np.flatnonzero(funnel.after_test)
    captions = funnel.column("captions").take(pa.array(train)).to_pylist()
    if config.path:
        entries = [line.strip() for line in Path(config.path).read_text(errors="replace").splitlines() if line.strip()]
    else:
        entries = concepts_from(captions, min_count=config.min_count)
    if not entries:
        raise ValueError(
            f"no word is in {config.min_count} captions: lower --concept-min-count, or give a file of concepts"
        )
    matches = match_concepts(captions, entries)
    cap = config.cap or cap_for(matches, config.target or 1)
    kept, table = balance(matches, keys_of(funnel.column("id").take(pa.array(train)).to_pylist()), cap, SEED)
    funnel.notes["concepts"] = {"cap": cap, "entries": len(entries), "largest": table.slice(0, 30).to_pylist()}
    bad = np.zeros(len(funnel.rows), bool)
    bad[train[~kept]] = True
    funnel.drop(bad, "not_drawn")


def _by_embedding(store: Store, stages: Stages, funnel: Funnel, folder: Path, on_stage: Callable[[str], None]) -> None:
    """Semantic duplicates, then balanced sampling, on embeddings that are kept in files while they are needed."""
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        on_stage("embedding")
        blocks = _embedded(store, stages.encoder or "", funnel.rows, scratch / "embeddings")
        if stages.semantic:
            on_stage("semantic duplicates")
            before = funnel.rows
            _semantic(stages.semantic, blocks, funnel)
            left = np.flatnonzero(np.isin(before, funnel.rows))
            blocks = blocks.subset(scratch / "left", left) if stages.balance else blocks
        if stages.balance:
            on_stage("balancing")
            _balance(stages.balance, blocks, funnel, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _embedded(store: Store, run: str, numbers: np.ndarray, folder: Path) -> EmbeddingBlocks:
    from pipeline.evaluate.embed import Embedding
    from pipeline.evaluate.encoders import RunEncoders
    from pipeline.run import Run

    opened = Run(Path(run))
    embedding = Embedding(opened.experiment.cluster)
    found = embedding.blocks(RunEncoders.of(opened), store, numbers, names=("trained",))
    return EmbeddingBlocks.write(folder, (block["trained"].astype(np.float32) for block in found))


def _semantic(config: SemanticConfig, blocks: EmbeddingBlocks, funnel: Funnel) -> None:
    rows = funnel.rows
    clusters = min(len(rows), config.clusters or max(1, len(rows) // 1000))
    centroids = kmeans(blocks, clusters, seed=SEED)
    closest = closest_earlier(blocks, centroids, priority=funnel.after_test, probes=min(_PROBES, clusters))
    epsilon = config.epsilon or epsilon_for(closest, config.share or 0)
    stands = survivors(closest, epsilon)
    shares = removed_shares(closest, np.array(EPSILONS)).tolist()
    funnel.notes["semantic"] = {
        "epsilon": epsilon,
        "clusters": clusters,
        "share removed by epsilon": dict(zip(map(str, EPSILONS), shares, strict=True)),
    }
    twins = (stands != np.arange(len(rows))) & funnel.after_test.astype(bool)  # of training samples only, as above
    funnel.drop(twins, "dup_semantic", rows[stands])


def _balance(config: BalanceConfig, blocks: EmbeddingBlocks, funnel: Funnel, scratch: Path) -> None:
    """Draws among training samples only, as `_concepts`."""
    train = np.flatnonzero(funnel.after_test)
    if config.target > len(train):
        raise ValueError(f"{config.target} samples are asked for, but only {len(train)} are left: lower --balance")
    blocks = blocks.subset(scratch / "train", train)
    sizes = config.sizes(len(train))
    levels = hierarchical_kmeans(blocks, sizes, scratch / "levels", seed=SEED)
    keys = keys_of(funnel.column("id").take(pa.array(train)).to_pylist())
    drawn = hierarchical_sample([level.labels for level in levels], config.target, SEED, keys)
    bad = funnel.after_test.astype(bool)
    bad[train[drawn]] = False
    top = levels[-1].labels if len(levels) > 1 else np.arange(sizes[0])
    funnel.notes["balance"] = {"clusters": list(sizes), "drawn": len(drawn), "top clusters": int(top.max()) + 1}
    funnel.drop(bad, "not_drawn")
