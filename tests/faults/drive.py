"""`feral pretrain` as a process of its own, with faults: what a test of the driver kills.

python -m tests.faults.drive RUN EXPERIMENT SECONDS_A_STEP
"""

import sys
from pathlib import Path

import typer

from jobs.pretrain import pretrain_run
from pipeline.experiment import build_experiment
from tests.faults.injected import struck_by


def main(run: str, experiment: str, seconds_a_step: str) -> None:
    import json

    try:
        with struck_by(seconds_a_step=float(seconds_a_step)):
            pretrain_run(build_experiment(json.loads(experiment)), Path(run))
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except ValueError as error:
        print(f"error: {error}", flush=True)
        sys.exit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
