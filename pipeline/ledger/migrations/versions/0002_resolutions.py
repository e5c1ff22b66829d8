"""What a person decides of a dump: another try, or to leave it out."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    op.create_table(
        "resolution",
        sa.Column("resolution_id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("dump_id", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.CheckConstraint("action IN ('retried', 'skipped')", name=op.f("ck_resolution_action")),
        sa.CheckConstraint("length(reason) > 0", name=op.f("ck_resolution_reason")),
        sa.ForeignKeyConstraint(["dump_id"], ["dump.dump_id"], name=op.f("fk_resolution_dump_id")),
        sa.PrimaryKeyConstraint("resolution_id", name=op.f("pk_resolution")),
    )
    op.create_index(op.f("ix_resolution_dump_id"), "resolution", ["dump_id"])
