"""What each reason of refusal means to a person, with its threshold; and the order in which samples fall out."""

from collections.abc import Mapping
from typing import Any, Literal

from pipeline.ingest.refusals import Reason

Stage = Literal["source", "decode", "policy"]

# In braces: settings of `CurateConfig`.
SOURCE: dict[Reason, str] = {
    "tar_truncated": "the tar ends in the middle",
    "tar_trailing": "the tar holds something after its end, or no proper end",
    "tar_ratio": "the compressed tar unpacks to far more than it weighs, as a bomb does",
    "tar_too_many_members": "the tar has more members than are read from one",
    "tar_header_bad": "a header of the tar is damaged, or it is no tar",
    "parquet_unsafe": "the Parquet file asks for code to be run when it is read",
    "parquet_damaged": "the Parquet file, or a part of it, cannot be read",
    "count_mismatch": "the container holds another number of samples than it declares",
    "missing": "the source's list names it, and it is not there",
    "list_bad": "an entry of the source's list cannot be used",
    "quarantined": "this part of the source killed every worker that read it",
    "tar_sparse": "a sparse member, which can claim any size",
    "tar_nonregular": "a link, device or pipe instead of a file",
    "tar_member_too_big": "a member over the size limit",
    "key_invalid": "a name that leads out of its folder or cannot be shown",
    "key_duplicate": "a name that was there before",
    "ext_forbidden": "no picture by its extension, or a format that can run code",
    "hash_mismatch": "its bytes are not those whose digest the source declares",
    "bytes_over_cap": "an image file over the size limit",
}
DECODE: dict[Reason, str] = {
    "format_forbidden": "not one of the formats that are decoded, whatever its name says",
    "header_bad": "an empty file, or a header that cannot be read",
    "pixels_over_cap": "over {max_pixels:,} pixels: refused without decoding it",
    "side_under_min": "shorter side under {decode_min_side} pixels",
    "aspect_over_max": "too long for its width to be stored",
    "decode_failed": "cut or damaged: it cannot be decoded to its end",
    "decode_crash": "it crashed the decoder (in a process of its own, so nothing else was harmed)",
    "decode_timeout": "it took over {decode_seconds:g} s to decode",
    "decode_oom": "it took over {decode_memory_bytes:,} bytes of memory to decode",
    "blank": "all its values are one, so there is nothing to show",
    "blocklisted": "its hash is on the block-list",
}
# In braces: settings of `Policy`.
POLICY: dict[Reason, str] = {
    "blocklisted": "its hash is on, or near to one on, the block-list",
    "side_under_min": "shorter side under {min_side} pixels",
    "aspect_over_max": "longer side over {max_aspect} × the shorter",
    "blank": "nearly one colour: luminance spreads by less than {min_std:g} of 255",
    "entropy_under_min": "flat or synthetic: luminance has under {min_entropy:g} bits of entropy",
    "blurred": "blurred: sharpness under {min_sharpness:g}",
    "caption_missing": "no caption",
    "caption_short": "captions under {min_caption_words} words or {min_caption_characters} characters",
    "caption_language": "captions in other languages than {languages}",
    "caption_private": "captions with an e-mail address, telephone or card number",
    "caption_repeated": "a caption that more than {max_caption_repeats} samples share",
    "eval_overlap": "the same as, or near to, a picture of an evaluation set, or one that an earlier store holds out",
    "dup_exact": "a copy with the same bytes or pixels",
    "dup_near": "a near copy: perceptual hashes differ in at most {near_distance} bits, and colours agree",
    "dup_semantic": "an embedding almost like that of another sample",
    "over_quota": "its origin gives more than {max_origin_share:.0%} of the samples",
    "not_drawn": "left out by the draw that balances the selection",
}
MEANINGS: dict[Stage, dict[Reason, str]] = {"source": SOURCE, "decode": DECODE, "policy": POLICY}

# Stages of a policy in the order of `pipeline.select.policy.apply`; "earlier": copies of what older stores hold.
FUNNEL: dict[str, tuple[str, ...]] = {
    "not blocked": ("blocklisted",),
    "good pictures": ("side_under_min", "aspect_over_max", "blank", "entropy_under_min", "blurred"),
    "good captions": (
        "caption_missing", "caption_too_big", "caption_short", "caption_language", "caption_private",
        "caption_repeated",
    ),
    "not in an evaluation set": ("eval_overlap",),
    "not in an earlier store": ("dup_exact earlier", "dup_near earlier"),
    "no exact copies": ("dup_exact",),
    "no near copies": ("dup_near",),
    "no origin over its share": ("over_quota",),
    "no semantic copies": ("dup_semantic",),
    "drawn": ("not_drawn",),
}  # fmt: skip


def stage_of(refusal: str) -> Stage:
    """Where a sample of `refused.parquet` fell out: before its bytes were looked at, or because of them."""
    return "decode" if refusal in DECODE else "source"


def meaning(stage: Stage, reason: str, settings: Mapping[str, Any]) -> str:
    """`reason` in words, with the thresholds of `settings` (a policy's, or those of curation)."""
    words = next((words for known, words in MEANINGS[stage].items() if known == reason), reason.replace("_", " "))
    shown = {name: ", ".join(value) if isinstance(value, list | tuple) else value for name, value in settings.items()}
    try:
        return words.format(**shown)
    except (KeyError, TypeError, ValueError):  # a policy that decided without this threshold, as a history does
        return words.partition(":")[0] if "{" in words.partition(":")[2] else reason.replace("_", " ")
