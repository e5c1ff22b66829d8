"""Weights: how often an epoch has a sample, by its class or origin. For mixtures of dumps, replay and rare classes."""

import difflib

import numpy as np
import pyarrow.compute as pc

from pipeline.select.policy import Funnel, Policy
from pipeline.stream.plan import MAX_WEIGHT

_NOTED = 30  # groups in the notes, the largest


def weigh(policy: Policy, funnel: Funnel, classes: tuple[str, ...]) -> None:
    """Weighs the training samples that are still in; weights that they have already are multiplied.

    With `balance` b, a group of n samples takes a share proportional to n^(1-b), and the mean of all weights stays what
    it was (tempering, as of languages in G. Lample, A. Conneau 2019, "Cross-lingual language model pretraining"). Then
    `weights` multiplies. A sample of no class keeps its weight. `classes` are those that the index's labels count.

    Raises:
        ValueError: an unknown name in `weights`, no groups to tell apart, nothing left, or a weight over `MAX_WEIGHT`.
    """
    if policy.weight_by is None:
        return
    train = funnel.rows[funnel.after_test == 1]
    base = np.ones(len(train)) if funnel.weights is None else funnel.weights[train]
    groups, names = _by_label(policy, funnel, classes) if policy.weight_by == "label" else _by_origin(policy, funnel)
    groups = groups[funnel.after_test == 1]
    counts = np.bincount(groups[groups >= 0], base[groups >= 0], len(names))
    if not counts.any():
        raise ValueError(f"no training sample has a weight and a {policy.weight_by}: use another weight_by")
    tempered = _tempered(counts, policy.balance)
    factors = tempered * [policy.weights.get(name, 1) for name in names]
    weights = base * np.append(factors, 1)[groups]  # -1, no group, takes the last
    if not weights.any():
        raise ValueError("every training sample would weigh 0: give a group a weight above 0")
    if weights.max() > MAX_WEIGHT:
        raise ValueError(_too_much(policy, counts, names, int(groups[weights.argmax()]), weights.max()))
    funnel.weights = np.ones(len(funnel.reasons))
    single = weights.astype(np.float32)  # as they are kept; rounded up, so that no epoch loses an entry by rounding
    funnel.weights[train] = np.where(single < weights, np.nextafter(single, np.float32(np.inf)), single)
    largest = np.argsort(-counts, kind="stable")[:_NOTED]
    noted = {names[group]: float(f"{factors[group]:.4g}") for group in largest if counts[group]}
    funnel.notes[f"weights by {policy.weight_by}"] = noted


def _by_label(policy: Policy, funnel: Funnel, classes: tuple[str, ...]) -> tuple[np.ndarray, list[str]]:
    """The group (k,) int64 of each sample still in, -1: none; and the names of groups."""
    for name in policy.weights:
        if name not in classes:
            raise ValueError(_unknown(name, "class", list(classes)))
    labels = funnel.numbers("label").astype(np.int64)
    return labels, [*classes, *map(str, range(len(classes), labels.max(initial=-1) + 1))]


def _by_origin(policy: Policy, funnel: Funnel) -> tuple[np.ndarray, list[str]]:
    """As `_by_label`. What `weights` names, a folder or an origin, is one group; so is every other origin."""
    column = funnel.column("origin").combine_chunks().dictionary_encode()
    origins = column.dictionary.to_pylist()
    everywhere = pc.unique(funnel.table["origin"]).drop_null().to_pylist()
    for name in policy.weights:
        if not any(_within(origin, name) for origin in everywhere):
            folders = {"/".join(origin.split("/")[:depth]) for origin in everywhere for depth in range(1, 6)}
            raise ValueError(_unknown(name, "origin", sorted(folders | set(everywhere))))
    named = sorted(policy.weights, key=len, reverse=True)  # the innermost folder counts
    of = [next((name for name in named if _within(origin, name)), origin) for origin in origins]
    names = sorted(set(of))
    number = {name: place for place, name in enumerate(names)}
    codes = column.indices.fill_null(len(origins)).to_numpy().astype(np.int64)
    return np.array([*(number[name] for name in of), -1])[codes], names


def _within(origin: str, name: str) -> bool:
    return origin == name or origin.startswith(name.rstrip("/") + "/")


def _tempered(counts: np.ndarray, balance: float) -> np.ndarray:
    """Of each group, with mean 1 over all samples."""
    raw = np.where(counts > 0, np.maximum(counts, 1e-9) ** -balance, 0)
    return raw * counts.sum() / (raw * counts).sum()


def _unknown(name: str, kind: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    plural = "classes" if kind == "class" else f"{kind}s"
    hint = f"did you mean {', '.join(map(repr, close))}?" if close else f"there are {', '.join(map(repr, known[:8]))}"
    more = f" and {len(known) - 8} more {plural}" if not close and len(known) > 8 else ""
    return f"weights: the store has no {kind} {name!r}; {hint if known else f'it has no {plural}'}{more}"


def _too_much(policy: Policy, counts: np.ndarray, names: list[str], group: int, weight: float) -> str:
    given = np.array([policy.weights.get(name, 1) for name in names])
    milder = (step / 20 for step in range(round(policy.balance * 20), -1, -1))
    fits = next((b for b in milder if (_tempered(counts, b) * given).max() <= MAX_WEIGHT), None)
    way = f"use balance={fits:g}" if policy.balance and fits is not None else "lower weights"
    return (
        f"a sample of {names[group]!r} would come {weight:,.0f} times an epoch, over {MAX_WEIGHT}: {way}, or set "
        "weights of 0 for groups that are too small"
    )
