"""The tables of the ledger.

A *delivery* is a listing of files at a place; sealed, it is a *dump*, named by its content. *Work* turns dumps into
*selections* of a sealed store, these into *runs*, whose *checkpoints* are *evaluated*. An *alias* ("champion") names a
checkpoint, and an *event* tells every time that one was moved, or was not. A *resolution* is a person's, of a dump.

Times are Unix seconds. Digests are sha256 (hex). Counts are of samples.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)

# Of a dump. Every change is a compare-and-set on the old state: see `dumps.move`.
ENDED = ("quarantined", "drifted", "skipped")  # early, with a reason
JUDGED = ("promoted", "held")  # what fails from then on takes nothing back
DUMP_STATES = ("sealed", "verified", "curated", "trained", "evaluated", *JUDGED, *ENDED)
WORK_STATES = ("waiting", "ready", "running", "done", "failed")
ACTIONS = ("promoted", "forced", "held", "rolled back")  # of an event
ROLES = ("new", "replay")  # of a selection in a run
RESOLUTIONS = ("retried", "skipped")  # what a person decides of a dump


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(map(repr, values))})", name=column)


metadata = MetaData(
    naming_convention={  # the same on every database, so that migrations can name them
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

source = Table(
    "source",
    metadata,
    Column("source_id", Text, primary_key=True),
    Column("root", Text, nullable=False),  # where deliveries appear; without credentials
    Column("seal_rule", Text, nullable=False),
    Column("quota", Double),  # share of the samples that training may see; null: no limit
)

dump = Table(
    "dump",
    metadata,
    Column("dump_id", Text, primary_key=True),  # digest of its content
    Column("source_id", ForeignKey("source.source_id")),  # null: curated by hand
    Column("seq", BigInteger),  # orders the dumps of a source
    Column("admit_no", BigInteger, nullable=False, unique=True),  # orders all dumps: given once, at sealing
    Column("state", Text, nullable=False),
    Column("reason", Text),  # of the state
    Column("parent_id", ForeignKey("dump.dump_id")),  # of files that came late: what they were added to
    Column("files", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sealed_at", Double, nullable=False),
    UniqueConstraint("source_id", "seq"),
    _one_of("state", DUMP_STATES),
)

delivery = Table(
    "delivery",
    metadata,
    Column("uri", Text, nullable=False),  # without credentials
    Column("listing", Text, nullable=False),  # digest of paths, sizes and times
    Column("source_id", ForeignKey("source.source_id")),
    Column("stable_since", Double, nullable=False),  # when this listing was first seen
    Column("dump_id", ForeignKey("dump.dump_id")),  # null: not sealed yet
    PrimaryKeyConstraint("uri", "listing"),
)

work = Table(
    "work",
    metadata,
    Column("work_id", Text, primary_key=True),
    Column("dump_id", ForeignKey("dump.dump_id"), nullable=False),
    Column("stage", Text, nullable=False),
    Column("config_digest", Text, nullable=False),  # of everything that changes the output
    Column("state", Text, nullable=False),
    Column("owner", Text),
    Column("fence", BigInteger, nullable=False, default=0),  # grows with every claim: an older one is stale
    Column("attempt", Integer, nullable=False, default=0),
    Column("expires_at", Double),  # of the lease
    Column("output", Text),  # of what is done; of what failed, why
    UniqueConstraint("dump_id", "stage", "config_digest"),
    _one_of("state", WORK_STATES),
)

selection = Table(
    "selection",
    metadata,
    Column("selection_id", Text, primary_key=True),  # of the index that it counts in, and the selection's own digest
    Column("dump_id", ForeignKey("dump.dump_id"), nullable=False),
    Column("digest", Text, nullable=False),
    Column("store", Text, nullable=False),  # path
    Column("name", Text, nullable=False),
    Column("samples", BigInteger, nullable=False),  # of its training split
    Index(None, "dump_id"),
)

run = Table(
    "run",
    metadata,
    Column("run_id", Text, primary_key=True),  # digest of the experiment: what is computed, wherever that is
    Column("path", Text, nullable=False),  # where it was last seen
    Column("work_id", ForeignKey("work.work_id")),  # null: trained by hand
    Column("base", Text),  # checkpoint that it starts from; it may be of a run that nobody recorded
    Column("experiment", JSON, nullable=False),
    Column("versions", JSON, nullable=False),  # of the code that trained it
    Column("seed", BigInteger, nullable=False),
    Column("recorded_at", Double, nullable=False),
    Index(None, "base"),
)

run_input = Table(
    "run_input",
    metadata,
    Column("run_id", ForeignKey("run.run_id"), nullable=False),
    Column("selection_id", ForeignKey("selection.selection_id"), nullable=False),
    Column("role", Text, nullable=False),
    Column("planned", BigInteger, nullable=False),
    Column("consumed", BigInteger, nullable=False),
    PrimaryKeyConstraint("run_id", "selection_id", "role"),
    Index(None, "selection_id"),
    _one_of("role", ROLES),
)

checkpoint = Table(
    "checkpoint",
    metadata,
    Column("digest", Text, primary_key=True),  # of the weights
    Column("run_id", ForeignKey("run.run_id"), nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("path", Text, nullable=False),  # where it was last seen
    Column("commit", Text, nullable=False),  # digest of its marker, which holds that of every file
    Column("recorded_at", Double, nullable=False),
    Index(None, "run_id"),
)

evaluation = Table(
    "evaluation",
    metadata,
    Column("checkpoint", ForeignKey("checkpoint.digest"), nullable=False),
    Column("store_digest", Text, nullable=False),  # what it was judged on
    Column("complete", Integer, nullable=False),  # 1 or 0
    Column("scores", JSON, nullable=False),  # name → value
    Column("file", Text, nullable=False),
    Column("recorded_at", Double, nullable=False),
    PrimaryKeyConstraint("checkpoint", "store_digest"),
)

alias = Table(
    "alias",
    metadata,
    Column("name", Text, primary_key=True),
    Column("checkpoint", ForeignKey("checkpoint.digest"), nullable=False),
    Column("version", BigInteger, nullable=False),  # counts its moves
)

event = Table(
    "event",
    metadata,
    Column("event_id", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Column("action", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("before", ForeignKey("checkpoint.digest")),  # that the alias named; null: none
    Column("checkpoint", ForeignKey("checkpoint.digest"), nullable=False),  # that it names now, or that was held
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("gate", JSON),  # the rows of its table
    Index(None, "name"),
    _one_of("action", ACTIONS),
    CheckConstraint("length(reason) > 0", name="reason"),
)

resolution = Table(
    "resolution",
    metadata,
    Column("resolution_id", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Column("dump_id", ForeignKey("dump.dump_id"), nullable=False),
    Column("action", Text, nullable=False),
    Column("before", Text, nullable=False),  # state of the dump
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Index(None, "dump_id"),
    _one_of("action", RESOLUTIONS),
    CheckConstraint("length(reason) > 0", name="reason"),
)
