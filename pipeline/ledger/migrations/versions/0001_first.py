"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None


def upgrade() -> None:
    op.create_table(
        "source",
        sa.Column("source_id", sa.Text(), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("seal_rule", sa.Text(), nullable=False),
        sa.Column("quota", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("source_id", name=op.f("pk_source")),
    )
    op.create_table(
        "dump",
        sa.Column("dump_id", sa.Text(), nullable=False),
        sa.Column("source_id", sa.Text(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("admit_no", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("parent_id", sa.Text(), nullable=True),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sealed_at", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "state IN ('sealed', 'verified', 'curated', 'trained', 'evaluated', 'promoted', 'held', 'quarantined', "
            "'drifted', 'skipped')",
            name=op.f("ck_dump_state"),
        ),
        sa.ForeignKeyConstraint(["parent_id"], ["dump.dump_id"], name=op.f("fk_dump_parent_id")),
        sa.ForeignKeyConstraint(["source_id"], ["source.source_id"], name=op.f("fk_dump_source_id")),
        sa.PrimaryKeyConstraint("dump_id", name=op.f("pk_dump")),
        sa.UniqueConstraint("admit_no", name=op.f("uq_dump_admit_no")),
        sa.UniqueConstraint("source_id", "seq", name=op.f("uq_dump_source_id")),
    )
    op.create_table(
        "delivery",
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("listing", sa.Text(), nullable=False),
        sa.Column("source_id", sa.Text(), nullable=True),
        sa.Column("stable_since", sa.Double(), nullable=False),
        sa.Column("dump_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["dump_id"], ["dump.dump_id"], name=op.f("fk_delivery_dump_id")),
        sa.ForeignKeyConstraint(["source_id"], ["source.source_id"], name=op.f("fk_delivery_source_id")),
        sa.PrimaryKeyConstraint("uri", "listing", name=op.f("pk_delivery")),
    )
    op.create_table(
        "selection",
        sa.Column("selection_id", sa.Text(), nullable=False),
        sa.Column("dump_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("store", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["dump_id"], ["dump.dump_id"], name=op.f("fk_selection_dump_id")),
        sa.PrimaryKeyConstraint("selection_id", name=op.f("pk_selection")),
    )
    op.create_index(op.f("ix_selection_dump_id"), "selection", ["dump_id"], unique=False)
    op.create_table(
        "work",
        sa.Column("work_id", sa.Text(), nullable=False),
        sa.Column("dump_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("config_digest", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("output", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('waiting', 'ready', 'running', 'done', 'failed')", name=op.f("ck_work_state")),
        sa.ForeignKeyConstraint(["dump_id"], ["dump.dump_id"], name=op.f("fk_work_dump_id")),
        sa.PrimaryKeyConstraint("work_id", name=op.f("pk_work")),
        sa.UniqueConstraint("dump_id", "stage", "config_digest", name=op.f("uq_work_dump_id")),
    )
    op.create_table(
        "run",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("work_id", sa.Text(), nullable=True),
        sa.Column("base", sa.Text(), nullable=True),
        sa.Column("experiment", sa.JSON(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("recorded_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["work_id"], ["work.work_id"], name=op.f("fk_run_work_id")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run")),
    )
    op.create_index(op.f("ix_run_base"), "run", ["base"], unique=False)
    op.create_table(
        "checkpoint",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("commit", sa.Text(), nullable=False),
        sa.Column("recorded_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_checkpoint_run_id")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_checkpoint")),
    )
    op.create_index(op.f("ix_checkpoint_run_id"), "checkpoint", ["run_id"], unique=False)
    op.create_table(
        "run_input",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("selection_id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("planned", sa.BigInteger(), nullable=False),
        sa.Column("consumed", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("role IN ('new', 'replay')", name=op.f("ck_run_input_role")),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_run_input_run_id")),
        sa.ForeignKeyConstraint(["selection_id"], ["selection.selection_id"], name=op.f("fk_run_input_selection_id")),
        sa.PrimaryKeyConstraint("run_id", "selection_id", "role", name=op.f("pk_run_input")),
    )
    op.create_index(op.f("ix_run_input_selection_id"), "run_input", ["selection_id"], unique=False)
    op.create_table(
        "alias",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("checkpoint", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint"], ["checkpoint.digest"], name=op.f("fk_alias_checkpoint")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_alias")),
    )
    op.create_table(
        "evaluation",
        sa.Column("checkpoint", sa.Text(), nullable=False),
        sa.Column("store_digest", sa.Text(), nullable=False),
        sa.Column("complete", sa.Integer(), nullable=False),
        sa.Column("scores", sa.JSON(), nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("recorded_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint"], ["checkpoint.digest"], name=op.f("fk_evaluation_checkpoint")),
        sa.PrimaryKeyConstraint("checkpoint", "store_digest", name=op.f("pk_evaluation")),
    )
    op.create_table(
        "event",
        sa.Column("event_id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("checkpoint", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("gate", sa.JSON(), nullable=True),
        sa.CheckConstraint("action IN ('promoted', 'forced', 'held', 'rolled back')", name=op.f("ck_event_action")),
        sa.CheckConstraint("length(reason) > 0", name=op.f("ck_event_reason")),
        sa.ForeignKeyConstraint(["before"], ["checkpoint.digest"], name=op.f("fk_event_before")),
        sa.ForeignKeyConstraint(["checkpoint"], ["checkpoint.digest"], name=op.f("fk_event_checkpoint")),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_event")),
    )
    op.create_index(op.f("ix_event_name"), "event", ["name"], unique=False)
