"""Object storage by URI: file systems of pyarrow with their options, and errors that name the way out, no secret."""

import os
import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import pyarrow as pa
from pyarrow import fs

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")  # nothing that opens web pages
S3_OPTIONS = ("region", "scheme", "endpoint_override", "anonymous")
_CONNECT_SECONDS, _REQUEST_SECONDS = 5.0, 30.0


class Unreachable(ValueError):
    """Storage that does not answer now; that says nothing about what it holds."""


def opened_storage(uri: str, scheme: str) -> tuple[fs.FileSystem, str, str]:
    """The file system of a URI, the path in it, and the URI as it is shown: without credentials.

    Raises:
        ValueError: unknown options, credentials where they would be seen, an endpoint that cannot be reached.
    """
    return _s3(uri) if scheme == "s3" else _other(uri, scheme)


def _s3(text: str) -> tuple[fs.FileSystem, str, str]:
    """File system, path and what to show. The environment (AWS_…) tells what the URI does not."""
    uri = urlsplit(text, allow_fragments=False)
    credentials, _, bucket = uri.netloc.rpartition("@")
    if ":" in bucket or not bucket:  # a secret with a slash ends up here: do not repeat it
        raise ValueError(
            "an S3 source is s3://bucket/folder: put credentials into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "percent-encode them"
        )
    options = dict(parse_qsl(uri.query))
    shown = f"s3://{bucket}{uri.path.rstrip('/')}"
    if unknown := sorted(set(options) - set(S3_OPTIONS)):
        raise ValueError(f"{shown} has unknown options {', '.join(unknown)}: there are {', '.join(S3_OPTIONS)}")
    if "@" in options.get("endpoint_override", ""):
        raise ValueError(f"the endpoint of {shown} holds credentials: put them into AWS_… variables")
    shown += f"?{urlencode(options, safe=':/')}" if options else ""
    endpoint = options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, host = endpoint.rpartition("://")
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    access, _, secret = credentials.partition(":")
    given: dict[str, Any] = {"access_key": unquote(access), "secret_key": unquote(secret)} if secret else {}
    try:
        files = fs.S3FileSystem(
            **given,
            anonymous=options.get("anonymous", "").lower() in ("1", "true"),
            region=region or ("us-east-1" if endpoint else fs.resolve_s3_region(bucket)),
            endpoint_override=host.rstrip("/") or None,
            scheme=options.get("scheme") or scheme or "https",
            connect_timeout=_CONNECT_SECONDS,
            request_timeout=_REQUEST_SECONDS,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
        )
    except (OSError, pa.ArrowException) as error:
        raise unusable(shown, error) from None
    return files, f"{bucket}{uri.path}".rstrip("/"), shown


def _other(text: str, scheme: str) -> tuple[fs.FileSystem, str, str]:
    uri = urlsplit(text, allow_fragments=False)
    user, _, host = uri.netloc.rpartition("@")
    name, _, password = user.partition(":")
    shown = f"{scheme}://{name + '@' if name else ''}{host}{uri.path.rstrip('/')}"
    try:
        files, path = fs.FileSystem.from_uri(text)
        if isinstance(files, fs.GcsFileSystem) and "retry_limit_seconds" not in uri.query:
            limit = f"retry_limit_seconds={_REQUEST_SECONDS}"  # else 15 minutes
            files, path = fs.FileSystem.from_uri(f"{text}{'&' if uri.query else '?'}{limit}")
    except (OSError, pa.ArrowException) as error:
        kind = str(error).replace(text, shown)
        for secret in filter(None, (password, unquote(password), uri.query)):
            kind = kind.replace(secret, "…")
        raise unusable(shown, kind) from None
    return files, path.rstrip("/"), shown


def unusable(shown: str, error: object) -> ValueError:
    """What storage that cannot be used says, and the way out."""
    is_s3, said = shown.startswith("s3:"), " ".join(str(error).split())[:300]
    if re.search(r"ACCESS_DENIED|INVALID_ACCESS|SIGNATURE|CREDENTIAL|FORBIDDEN|UNAUTHENTICATED|code:? 40[13]|TOKEN",
                 said, re.IGNORECASE):  # fmt: skip
        way = "its credentials are refused: "
        way += "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if is_s3 else "log in with the storage's own tool"
    elif re.search(r"NETWORK_CONNECTION|curlCode|TIMEOUT|timed out|UNAVAILABLE|SLOW_DOWN|connect", said):
        way = "its endpoint cannot be reached: check the network"
        way += ", AWS_ENDPOINT_URL, or ?endpoint_override=…&scheme=http" if is_s3 else ""
        return Unreachable(f"{shown} cannot be used: {way} ({said})")
    else:
        way = "check its spelling, region and endpoint"
    return ValueError(f"{shown} cannot be used: {way} ({said})")
