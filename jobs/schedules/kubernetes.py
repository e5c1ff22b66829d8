"""Kubernetes: our manifests, with a plan's file, times, ledger and image filled in."""

from pathlib import Path
from typing import Any

import yaml

from jobs.schedules.plan import Plan

MANIFESTS = Path(__file__).parent.parent / "manifests"
DEFAULT_ZONE = "Etc/UTC"  # else it is that of a control plane which nobody has seen


def cronjob(plan: Plan) -> dict[str, str]:
    """A CronJob whose pod submits the tick to a RayCluster."""
    manifest = _timed("cronjob.yaml", plan)
    (container,) = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    container["image"] = plan.image
    container["args"] = [*plan.arguments, "--exit-zero"]  # held by the gate is no failure that a retry would mend
    *before, _, end = container["command"]
    container["command"] = [*before, f"http://{plan.cluster}-head-svc:8265", end]
    token = next(one for one in container["env"] if one["name"] == "RAY_AUTH_TOKEN")
    token["valueFrom"]["secretKeyRef"]["name"] = plan.cluster  # where the KubeRay operator keeps it
    return {f"{plan.name}-cronjob.yaml": _text(manifest, "kubectl apply -f")}


def raycronjob(plan: Plan) -> dict[str, str]:
    """A RayCronJob, which is alpha."""
    import shlex

    manifest = _timed("raycronjob.yaml", plan)
    job = manifest["spec"]["jobTemplate"]
    job["clusterSelector"] = {"ray.io/cluster": plan.cluster}
    job["entrypoint"] = shlex.join(["feral", *plan.arguments, "--exit-zero"])
    return {f"{plan.name}-raycronjob.yaml": _text(manifest, "ALPHA. kubectl apply -f")}


def _timed(name: str, plan: Plan) -> dict[str, Any]:
    manifest = yaml.safe_load((MANIFESTS / name).read_text())
    manifest["metadata"]["name"] = plan.name
    manifest["spec"] |= {"schedule": plan.times.cron, "timeZone": plan.time_zone or DEFAULT_ZONE}
    return manifest


def _text(manifest: dict[str, Any], how: str) -> str:
    return f"# Made by `feral schedule`. {how} THIS_FILE\n" + yaml.safe_dump(manifest, sort_keys=False, width=120)
