"""The MLflow server that `MLFLOW_TRACKING_URI` names, and what may be said to it and of it.

What is there is a copy: the run's directory and the ledger hold the truth. Needs the extra `mlflow`. A person's
password in the URI is handed to MLflow by the variables that it has for that, so that no address holds it.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from mlflow import MlflowClient

URI, NAME = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
USER, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; MLflow itself would wait for minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it would report to its makers
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
CAUSE = re.compile(r'Caused by \w+\("(?:.*\): )?(.*)"\)')  # what urllib3 wraps: a refused connection, a time-out


class NotMirrored(Exception):
    """The server does not answer, or refuses; the message holds no credentials."""


@dataclass(frozen=True)
class Server:
    client: "MlflowClient"
    name: str  # of the experiment that runs are in, and of the registered model
    shown: str  # the URI, without credentials


def wanted() -> bool:
    return bool(os.environ.get(URI))


def connect() -> Server:
    """The server that the environment names; nothing is asked of it yet.

    Raises:
        NotMirrored: none is named, or MLflow is not installed.
    """
    if not wanted():
        raise NotMirrored(f"{URI} names no server: set it, as {URI}=http://HOST:5000")
    for name, value in LIMITS.items():
        os.environ.setdefault(name, value)
    os.environ.update(SETTINGS)
    with calling():
        uri, user, password = _parted(os.environ[URI])
        os.environ.update({URI: uri, **({USER: user, PASSWORD: password} if user else {})})
        try:
            from mlflow import MlflowClient
        except ModuleNotFoundError as error:
            raise NotMirrored(f"{error.name} is not installed: from the checkout, pip install -e '.[mlflow]'") from None
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        return Server(MlflowClient(uri, uri), os.environ.get(NAME) or "feral", shown(uri))


@contextmanager
def calling() -> Iterator[None]:
    """What goes wrong while a server is asked is told without credentials; whatever it is, no run is worth it.

    Raises:
        NotMirrored: in place of any other exception.
    """
    try:
        yield
    except NotMirrored:
        raise
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        cause = CAUSE.search(line)
        raise NotMirrored(_without_secrets(cause[1] if cause else line)[:500]) from None


def shown(uri: str) -> str:
    """Without credentials and without a query, which may hold some."""
    userinfo, at, _ = urlsplit(uri).netloc.rpartition("@")
    return uri.partition("?")[0].partition("#")[0].replace(userinfo + at, "", 1)


def _parted(uri: str) -> tuple[str, str, str]:
    """A web server's address without credentials, user and password; a database has no other place for them."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.username:
        return uri, "", ""
    netloc = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=netloc).geturl(), unquote(parts.username), unquote(parts.password or "")


def _without_secrets(text: str) -> str:
    netloc = urlsplit(os.environ.get(URI, "")).netloc
    userinfo = netloc.rpartition("@")[0]
    secrets = [userinfo, unquote(userinfo.partition(":")[2]), *(os.environ.get(name, "") for name in (PASSWORD, TOKEN))]
    for secret in filter(None, secrets):
        text = text.replace(secret, "…")
    return text
