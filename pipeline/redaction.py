"""Passwords and tokens that people type: never in a run's directory, a report, the ledger or a log."""

import re
import sys

HIDDEN = "***"
# scheme://user:password@host. A password may hold slashes; what is hidden too much is no harm.
_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*):[^\s@]+@")
# NAME=VALUE where the name says so: RAY_AUTH_TOKEN=…, --env=AWS_SECRET_ACCESS_KEY=…, ?sig=…
_NAMED = re.compile(
    r"""\b([\w.-]*(?:passw(?:or)?d|pwd|secret|token|credentials?|signature|sig|api_?key|access_?key(?:_id)?))=
        ("[^"]*"|'[^']*'|[^\s&,;'"]+)""",
    re.IGNORECASE | re.VERBOSE,
)


def without_secrets(text: str) -> str:
    """The text with the passwords of URLs and the values of what is named like a secret replaced by ***."""
    return _NAMED.sub(rf"\1={HIDDEN}", _URL.sub(rf"\1:{HIDDEN}@", text))


def typed_command() -> list[str]:
    """The command that runs, as it may be written down."""
    return ["feral", *map(without_secrets, sys.argv[1:])]
