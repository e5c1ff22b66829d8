"""Why a sample or a part of a source is not let in: a closed set of reasons, each with a detail for a person."""

from typing import Literal, get_args

Reason = Literal[
    # containers: the samples before (and, where reading can go on, after) the damage are good
    "tar_truncated", "tar_trailing", "tar_ratio", "tar_too_many_members", "tar_header_bad", "parquet_unsafe",
    "parquet_damaged", "count_mismatch", "missing", "list_bad", "quarantined",
    # members and names
    "tar_sparse", "tar_nonregular", "tar_member_too_big", "key_invalid", "key_duplicate", "ext_forbidden",
    "hash_mismatch", "bytes_over_cap",
    # pictures
    "format_forbidden", "header_bad", "pixels_over_cap", "side_under_min", "aspect_over_max", "decode_failed",
    "decode_crash", "decode_timeout", "decode_oom", "blank",
    # decided by a policy, from what was measured
    "entropy_under_min", "blurred", "caption_missing", "caption_short", "caption_language",
    "caption_repeated", "caption_private", "over_quota", "dup_exact", "dup_near", "dup_semantic", "eval_overlap",
    "blocklisted", "not_drawn",
]  # fmt: skip
REASONS: tuple[Reason, ...] = get_args(Reason)


class Refusal(Exception):
    """A sample that is not let in: `reason` from the closed set, `detail` for a person (300 characters at most)."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail[:300]
