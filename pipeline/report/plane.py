"""The plane of alignment and uniformity (Wang and Isola 2020, arXiv 2005.10242, figure 3): lower is better in both."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluate.protocol import Evaluation, Health
from pipeline.report.axes import linear
from pipeline.report.plots import Plot, dot, line, plot
from pipeline.train.record import Rows

SUMMARY = "lower left is better: views of an image are near each other, and images are spread evenly"


@dataclass(frozen=True)
class Place:
    """Where embeddings stand."""

    uniformity: float
    alignment: float
    text: str
    label: str = ""
    look: str = ""
    score: float | None = None  # tints it

    @classmethod
    def of(cls, health: Health | None, text: str, **more) -> "Place | None":
        """None: older files do not know it."""
        if health is None or health.uniformity is None or health.alignment is None:
            return None
        text = f"{text}: alignment {health.alignment:.2f}, uniformity {health.uniformity:.2f}"
        return cls(health.uniformity, health.alignment, text, **more)


def run_plane(evaluation: Evaluation | None, events: Rows) -> Plot | None:
    """A run before and after training, on test images; and its way, by what online probes of checkpoints found."""
    judged = evaluation.health if evaluation else {}
    places = [
        Place.of(judged.get("random"), "before training, test images", label="before training", look="before"),
        Place.of(judged.get("trained"), f"step {evaluation.step:,}, test images", label="trained", look="best")
        if evaluation
        else None,
    ]
    probes = {event["step"]: event["health"] for event in events if event["event"] == "probe"}
    path = [
        Place.of(Health.model_validate(health), f"step {step:,}, training images", look="way")
        for step, health in sorted(probes.items())
    ]
    return plane("Alignment and uniformity", places, path)


def trials_plane(trials: Sequence[tuple[str, int, Evaluation]], score: str) -> Plot | None:
    """A dot a trial (method, seed, evaluation), tinted by a score and labelled once a method; and a grey one of each
    before training."""
    places, named = [], set[str]()
    for method, seed, evaluation in trials:
        found, health = evaluation.score(score), evaluation.health
        name, value = f"{method} seed {seed}", found.trained if found else None
        shown = f"{name}, {found.shown(found.trained)}" if found else name
        label, before = "" if method in named else method, "" if named else "before training"
        places.append(Place.of(health.get("trained"), shown, label=label, score=value))
        places.append(Place.of(health.get("random"), f"{name} before training", label=before))
        named.add(method)
    return plane("Trials", places)


def plane(title: str, places: Sequence[Place | None], path: Sequence[Place | None] = ()) -> Plot | None:
    """Dots, those with scores tinted from the worst to the best; and the way of a run, from its first checkpoint on.
    None: of fewer than two."""
    dots, way = ([place for place in some if place] for some in (places, path))
    if len(dots) + len(way) < 2:
        return None
    x = linear("uniformity", [place.uniformity for place in (*dots, *way)], near_zero=False)
    y = linear("alignment", [place.alignment for place in (*dots, *way)])
    scores = [place.score for place in dots if place.score is not None]
    worst, best = min(scores, default=0.0), max(scores, default=1.0)
    drawn = [
        dot(
            x, y, (place.uniformity, place.alignment), place.text, label=place.label, look=place.look,
            tint=None if place.score is None else (place.score - worst) / (best - worst or 1),
        )
        for place in (*way, *dots)
    ]  # fmt: skip
    lines = [line(x, y, [(place.uniformity, place.alignment) for place in way])] if len(way) > 1 else []
    return plot(title, SUMMARY, x, y, lines, drawn)
