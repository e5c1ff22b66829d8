"""The published schemas of Kubernetes and KubeRay, as far as our manifests use them: see schemas/."""

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

SCHEMAS = Path(__file__).parent / "schemas"


def accept(manifest: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError where Kubernetes would not take a manifest: a field that is unknown, of another
    type, or missing."""
    kind = str(manifest.get("kind"))
    if kind not in _definitions():
        raise jsonschema.ValidationError(f"no manifest of ours is of kind {kind}")
    schema = {"$ref": f"#/definitions/{kind}", "definitions": _definitions()}
    for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest):
        raise error


@cache
def _definitions() -> dict[str, Any]:
    files = (SCHEMAS / "kubernetes.yaml", SCHEMAS / "kuberay.yaml")
    return {name: one for file in files for name, one in yaml.safe_load(file.read_text())["definitions"].items()}
