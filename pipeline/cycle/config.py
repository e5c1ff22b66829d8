"""What a production cycle is told: one TOML file."""

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.gate import TOLERANCE
from pipeline.ingest.config import CurateConfig
from pipeline.ledger.promotion import CHAMPION
from pipeline.ledger.work import LEASE_SECONDS, MAX_ATTEMPTS
from pipeline.select.policy import PRESETS, Policy
from pipeline.settings import explain, parse_value, settings
from pipeline.train.continuing import COOLDOWN_SHARE
from ssl_models.config import Config

EXAMPLE = "feral tick --example"
_OWN = ("in_place", "compressed")  # of reading: a dump may be removed once its store is sealed; the latter is a door


class Source(Config):
    """A place where deliveries appear. Each folder, tar or Parquet file directly in it is one."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,40}$", description="in the ledger and on pages")
    root: str = Field(min_length=1, description="a folder, s3://bucket/folder, …: what `feral curate` reads")
    seal: Literal["marker", "quiet"] = Field(
        "marker",
        description="when a delivery is whole: it holds _SUCCESS, or all that its _MANIFEST.json names; or nothing in "
        "it has changed for some minutes",
    )
    quiet_minutes: float = Field(10, ge=0, description="without a change; also for files that come late")
    number: str | None = Field(
        None, description="regular expression whose one group is the number in a delivery's name: gaps are told"
    )
    policy: Literal["none", "clean", "basic", "strict"] = Field("clean", description="see `feral policies`")
    thresholds: dict[str, Any] = Field({}, description="of the policy")
    reading: dict[str, Any] = Field({}, description="side, holdout, image_column, … of `feral curate`")
    block_list: Path | None = Field(None, description="hashes of pictures never to be used")
    eval_sets: tuple[Path, ...] = Field((), description="stores whose pictures are kept out, beside those of judge_on")
    quota: float | None = Field(
        None, gt=0, lt=1, description="share of all training images that may come from here, once there are others"
    )
    suspicious_cluster_share: float = Field(
        0.25, gt=0, le=1, description="near copies of one picture from which on a dump waits for a person; 1: never"
    )
    suspicious_origin_share: float = Field(
        1, gt=0, le=1, description="images of one host, tar or folder from which on a dump waits for a person; 1: never"
    )

    @field_validator("thresholds", "reading")
    @classmethod
    def _with_nulls(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _parsed(value)

    @field_validator("number")
    @classmethod
    def _one_group(cls, value: str | None) -> str | None:
        try:
            groups = re.compile(value or "()").groups
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        if groups != 1:
            raise ValueError(rf"has {groups} groups, and one must hold the number, as in batch-(\d+)")
        return value

    @model_validator(mode="after")
    def _curable(self) -> "Source":
        for name in _OWN:
            if name in self.reading:
                raise ValueError(
                    f"sources.reading.{name}: a cycle keeps its own copy of what it trains on; leave it out"
                )
        for config, given, what in (
            (CurateConfig, self.reading, "reading"), (Policy, self.thresholds, "thresholds"),
        ):  # fmt: skip
            _refuse_unknown(given, config, f"sources.{what}.")
        try:
            assert self.chosen_policy
            assert self.chosen_reading
        except ValidationError as error:
            raise ValueError(explain(error, "feral policies")) from None
        return self

    @property
    def chosen_policy(self) -> Policy:
        return Policy.model_validate({**PRESETS[self.policy][0].model_dump(), **self.thresholds})

    @property
    def chosen_reading(self) -> CurateConfig:
        return CurateConfig.model_validate(self.reading)


class Cycle(Config):
    """Paths are relative to the file."""

    root: Path = Field(description="folder of all that the cycle makes: stores, runs, candidates, evaluations")
    recipe: str = Field(description="of the first run (`feral recipes`); later ones go on with its settings")
    settings: dict[str, Any] = Field({}, description="of the recipe that are other, as those of `feral pretrain`")
    images_per_dump: int | None = Field(None, ge=1, description="images seen in training on a dump, replay included")
    epochs_per_dump: float | None = Field(None, gt=0, description="instead: passes over the dump's new images")
    replay_share: float = Field(0.25, ge=0, lt=1, description="of each batch that comes from earlier dumps")
    cooldown_share: float = Field(
        COOLDOWN_SHARE,
        gt=0,
        le=1,
        description="length of the cooldown to a candidate, over that of training on a dump",
    )
    judge_on: tuple[Path, ...] = Field(
        (),
        description="sealed stores for the gate, never trained on; none: held-back images of compare_dumps dumps",
    )
    compare_dumps: int = Field(
        4, ge=1, le=64, description="newest dumps on whose held-back images encoders are compared: what was forgotten"
    )
    tolerance: float = Field(
        TOLERANCE, ge=0, le=1, description="by how much a headline score may be lower than the champion's"
    )
    after_held: Literal["continue", "wait"] = Field(
        "continue", description="later dumps, when the gate holds one for harm: go on from the old plateau, or wait"
    )
    attempts: int = Field(MAX_ATTEMPTS, ge=1, description="at a stage, then its dump is quarantined")
    lease_seconds: float = Field(
        LEASE_SECONDS, gt=0, description="after which another may take over a stage whose owner is silent"
    )
    ledger: str | None = Field(None, description="file or postgresql://…; default: FERAL_LEDGER, else runs/ledger.db")
    champion: str = Field(CHAMPION, min_length=1, description="the name of the best candidate in the ledger")
    base: str = Field("base", min_length=1, description="the name of the plateau that the next dump goes on from")
    sources: tuple[Source, ...]

    @field_validator("settings")
    @classmethod
    def _flat(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _parsed(settings(value))

    @model_validator(mode="after")
    def _parts_fit(self) -> "Cycle":
        if not self.sources:
            raise ValueError("sources: name a place where deliveries appear, with [[sources]]")
        if (self.images_per_dump is None) == (self.epochs_per_dump is None):
            raise ValueError("give images_per_dump or epochs_per_dump: how long a dump is trained on; one of them")
        if self.champion == self.base:
            raise ValueError(f"champion and base are both {self.base!r}: two checkpoints need two names")
        for what in ("name", "root"):
            given = [getattr(source, what) for source in self.sources]
            if twice := next((one for one in given if given.count(one) > 1), None):
                raise ValueError(f"two sources have {what} = {twice!r}: give each its own")
        return self

    def source(self, name: str) -> Source:
        return next(source for source in self.sources if source.name == name)


def read_cycle(file: Path) -> Cycle:
    """The cycle that a file describes, with absolute paths.

    Raises:
        ValueError: it cannot be read; or key, value and bound of what is wrong.
    """
    try:
        content = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:  # of TOML, or of UTF-8
        raise ValueError(f"{file} cannot be read: {error}; `{EXAMPLE}` prints one to start with") from None
    _refuse_unknown(content, Cycle)
    for source in content.get("sources", ()):
        if isinstance(source, Mapping):
            _refuse_unknown(source, Source, "sources.")
    try:
        return _absolute(Cycle.model_validate(content), file.absolute().parent)
    except ValidationError as error:
        raise ValueError(f"{file}: {explain(error, EXAMPLE)}") from None


def _parsed(values: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null: it is written as text, as on a command line."""
    return {key: parse_value(one) if isinstance(one, str) else one for key, one in values.items()}


def _refuse_unknown(content: Mapping[str, Any], config: type[Config], prefix: str = "") -> None:
    for key in content:
        if key not in config.model_fields:
            close = difflib.get_close_matches(key, config.model_fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(config.model_fields)}"
            raise ValueError(f"{prefix}{key}: no such key; {hint} (`{EXAMPLE}` shows all)")


def _absolute(cycle: Cycle, folder: Path) -> Cycle:
    def place(text: str) -> str:
        return text if "://" in text else str(folder / text)

    sources = [
        source.model_copy(
            update={
                "root": place(source.root),
                "block_list": folder / source.block_list if source.block_list else None,
                "eval_sets": tuple(folder / one for one in source.eval_sets),
            }
        )
        for source in cycle.sources
    ]
    return cycle.model_copy(
        update={
            "root": folder / cycle.root,
            "judge_on": tuple(folder / one for one in cycle.judge_on),
            "ledger": place(cycle.ledger) if cycle.ledger else None,
            "sources": tuple(sources),
        }
    )
