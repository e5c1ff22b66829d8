"""The Pareto front of score and cost."""

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]], more_is_better: bool = False) -> list[int]:
    """Places of the (cost, score) that no other one beats in both, the cheapest first."""
    sign = -1 if more_is_better else 1
    order = sorted(range(len(points)), key=lambda place: (sign * points[place][0], -points[place][1]))
    found: list[int] = []
    for place in order:
        if not found or points[place][1] > points[found[-1]][1]:
            found.append(place)
    return found
