"""How a store and its selection were made: every setting with its meaning, and the commands to select again."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pipeline.ingest.selection import Selection, read_selection, selections_of
from pipeline.ingest.store import BLOCKLIST, Store
from pipeline.select.policy import PRESETS
from ssl_models.config import Config


def policy_of(chosen: Selection) -> tuple[dict[str, Any], dict[str, Any]]:
    """The policy of a selection, and its further stages (none where curation made it)."""
    return chosen.policy.get("policy", chosen.policy), chosen.policy.get("stages", {})


def preset(policy: Mapping[str, Any]) -> str | None:
    """The name of the preset that a policy is; None for one of its own."""
    return next((name for name, (one, _) in PRESETS.items() if one.model_dump(mode="json") == policy), None)


def settings(
    group: str, values: Mapping[str, Any], schema: type[Config] | None, defaults: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Every setting with what it means; those that the schema does not know are facts, such as versions."""
    for name, value in values.items():
        about = schema.model_fields.get(name) if schema else None
        inner = next((part for part in _parts(about.annotation) if issubclass(part, Config)), None) if about else None
        if inner and isinstance(value, dict):
            yield from settings(f"{group}.{name}", value, inner, defaults.get(name) or {})
            continue
        default = defaults.get(name, about.get_default() if about and not about.is_required() else None)
        yield {
            "group": group,
            "name": name,
            "value": value,
            "default": default,
            "changed": about is not None and value != default,
            "meaning": (about.description or (inner and inner.__doc__) or "") if about else "recorded when it was made",
        }


def _parts(annotation: Any) -> list[type]:
    return [part for part in (annotation, *get_args(annotation)) if isinstance(part, type)]


def commands(store: Store, chosen: Selection) -> dict[str, str]:
    """The command that makes this selection again under another name, and one that makes another one."""
    policy, stages = policy_of(chosen)
    name = preset(policy)
    plain = PRESETS["clean"][0].model_dump(mode="json")
    changed = {} if name else {key: value for key, value in policy.items() if plain.get(key) != value}
    again = [
        *(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changed.items()),
        *("--policy", name or "clean"),
        *_parent(store, chosen),
        *_inputs(store, chosen),
        *_stages(stages),
    ]
    other = "strict" if name != "strict" else "basic"
    base = ["feral", "select", str(store.path)]
    return {
        "again": shlex.join([*base, f"{chosen.name}_again", *again]),
        "other": shlex.join([*base, other, "--policy", other, *_inputs(store, chosen)]),
    }


def _parent(store: Store, chosen: Selection) -> Iterator[str]:
    if chosen.based_on:
        named = (name for name in selections_of(store.path) if read_selection(store, name).digest == chosen.based_on)
        yield from ("--from", next(named, chosen.based_on))


def _inputs(store: Store, chosen: Selection) -> Iterator[str]:
    """What must decide about any selection of this store: else evaluation pictures would come back."""
    for name in chosen.inputs:
        for kind, option in (("evaluation set ", "--eval-set"), ("history ", "--history")):
            if name.startswith(kind):
                yield from (option, name.removeprefix(kind))
    if "block-list" in chosen.inputs:
        yield from ("--block-list", str(store.path / BLOCKLIST))


def _stages(stages: Mapping[str, Any]) -> Iterator[str]:
    concepts, semantic, balance = (stages.get(name) or {} for name in ("concepts", "semantic", "balance"))
    if concepts:
        yield from ("--concepts", concepts["path"] or "auto")
    options = {
        "--concept-target": concepts.get("target"),
        "--concept-cap": concepts.get("cap"),
        "--semantic-share": semantic.get("share"),
        "--semantic-epsilon": semantic.get("epsilon"),
        "--balance": balance.get("target"),
        "--clusters": ",".join(map(str, balance.get("clusters", ()))) or None,
        "--encoder": stages.get("encoder"),
    }
    for option, value in options.items():
        if value is not None:
            yield from (option, str(value))


def notes(chosen: Selection) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the stages noted, in words: (stage, rows)."""
    found = {name: value for name, value in chosen.notes.items() if name != "near comparisons skipped"}
    return [
        (name, [(key, _words(entry)) for key, entry in (value if isinstance(value, dict) else {"": value}).items()])
        for name, value in found.items()
    ]


def _words(value: Any) -> str:
    """As in: dog (count 500, kept 20), cat (count 30, kept 30)."""
    if isinstance(value, dict) and any(isinstance(entry, str) for entry in value.values()):
        first, *rest = value.items()
        return f"{first[1]} ({', '.join(f'{key} {_words(entry)}' for key, entry in rest)})"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
