"""Airflow: a DAG of one task, for Airflow 2 and 3."""

import json

from jobs.schedules.plan import Plan

_DAG = '''\
"""feral tick, again and again. Made by `feral schedule`; lay it into Airflow's DAGs folder."""

import subprocess
from datetime import datetime
from zoneinfo import ZoneInfo

try:
    from airflow.sdk import dag, task  # 3
    from airflow.sdk.exceptions import AirflowException, AirflowSkipException
except ImportError:
    from airflow.decorators import dag, task  # 2
    from airflow.exceptions import AirflowException, AirflowSkipException

COMMAND = {command}
FOLDER = {folder}
SKIPPED = {{10: "nothing to do"}}
TOLD = {{20: "held by the gate", 30: "a dump is quarantined"}}  # the ledger says why; no retry would mend it


def outcome(code: int) -> None:
    """What an exit status of `feral tick` is to Airflow."""
    if code in SKIPPED:
        raise AirflowSkipException(SKIPPED[code])
    if code in TOLD:
        print(TOLD[code])
    elif code:
        raise AirflowException(f"feral tick ended with exit status {{code}}")


@dag(
    dag_id={name},
    schedule={cron},
    start_date=datetime(2026, 1, 1, tzinfo=ZoneInfo({zone})),
    catchup=False,
    max_active_runs=1,
    tags=["feral"],
)
def feral_tick():
    @task(task_id="tick")
    def tick() -> None:
        outcome(subprocess.run(COMMAND, cwd=FOLDER, check=False).returncode)

    tick()


feral_tick()
'''


def dag(plan: Plan) -> dict[str, str]:
    """A DAG that runs the tick on the worker: exit status 10 is a skipped task, 1 a failed one."""
    text = _DAG.format(
        command=json.dumps(plan.command, indent=4),
        folder=json.dumps(plan.folder),
        name=json.dumps(plan.name),
        cron=json.dumps(plan.times.cron),
        zone=json.dumps(plan.time_zone or "UTC"),
    )
    return {f"{plan.name.replace('-', '_')}_dag.py": text}
