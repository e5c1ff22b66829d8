"""A command becomes a job once; what cannot run is refused here; a cluster's answer reaches the person."""

import asyncio
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs import running, submit
from jobs.cli import app
from pipeline.cluster import QUIET_RAY

COMMAND = ["curate", "a folder/with 'quotes'", "--to", "/stores/$HOME;x"]
ELSEWHERE = "http://192.0.2.7:8265"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*submit.ADDRESS_VARIABLES, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


class TestBeforeAnythingIsSent:
    def test_the_id_depends_on_every_word_of_the_command_and_on_nothing_else(self) -> None:
        assert submit.job_id(COMMAND) == submit.job_id(list(COMMAND))
        assert submit.job_id(COMMAND).startswith("feral-curate-")
        assert submit.job_id(["curate", "a b"]) != submit.job_id(["curate", "a", "b"])

    def test_a_shell_reads_the_entrypoint_as_the_words_that_were_given(self, fake: "FakeCluster") -> None:
        run("--python", "/opt/my env/python", "--", *COMMAND)
        (job,) = fake.submitted
        words = ["/opt/my env/python", "-m", "jobs.cli", *COMMAND]
        assert shlex.split(job["entrypoint"]) == words
        printed = subprocess.run(
            ["sh", "-c", f"printf '%s\\n' {job['entrypoint']}"], capture_output=True, text=True, check=True
        )
        assert printed.stdout.splitlines() == words

    def test_options_after_the_command_are_the_commands_own(self, fake: "FakeCluster") -> None:
        run("curate", "dump", "--to", "store", "--address", "auto")
        assert shlex.split(fake.submitted[0]["entrypoint"])[-5:] == ["dump", "--to", "store", "--address", "auto"]

    @pytest.mark.parametrize(
        ("address", "python"), [("http://127.0.0.1:8265", sys.executable), ("https://cluster.example:443", "python")]
    )
    def test_the_default_interpreter_is_this_one_only_on_this_machine(
        self, fake: "FakeCluster", address: str, python: str
    ) -> None:
        run("--address", address, "--", *COMMAND)
        assert shlex.split(fake.submitted[0]["entrypoint"])[0] == python

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--", "pertrain", "x"], r"'pertrain' is no feral command; there are: .*curate"),
            (["--", "submit", "curate"], "cannot submit"),
            (["--", "jobs"], "no feral command"),
            (["--", "curate", "s3://AKIA:s3cr/et@bucket/x", "--to", "y"], r"s3://AKIA:\*\*\*@bucket/x holds a secret"),
            (["--env", "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR=1", "--", *COMMAND], "lets a data file run code"),
            (["--", "--help"], "no feral command"),
            (["--env", "OMP_NUM_THREADS", "--", *COMMAND], "'OMP_NUM_THREADS' is not KEY=VALUE"),
            (["--env", "1A=b", "--", *COMMAND], "is not KEY=VALUE"),
            (["--working-dir", "/no/such", "--", *COMMAND], "'/no/such' is no directory"),
            (["--address", "127.0.0.1:8265", "--", *COMMAND], r"no http\(s\)://host:port"),
            (["--address", "ray://127.0.0.1:10001", "--", *COMMAND], r"no http\(s\)://host:port"),
            (["--address", ELSEWHERE, "--", *COMMAND], r"192\.0\.2\.7.*no token.*--unauthenticated"),
        ],
    )
    def test_what_cannot_run_is_refused_without_a_word_to_the_cluster(
        self, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
    ) -> None:
        monkeypatch.setattr(submit, "connect", lambda address: pytest.fail(f"contacted {address}"))
        with pytest.raises(ValueError, match=message):
            run(*arguments)

    def test_another_machine_is_accepted_with_a_token_or_tls_or_on_demand(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        submit.check_address(ELSEWHERE, unauthenticated=True)
        submit.check_address("https://192.0.2.7", unauthenticated=False)
        submit.check_address("http://[::1]:8265", unauthenticated=False)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 32)
        with pytest.raises(ValueError, match="no token"):  # Ray's client sends it in token mode only
            submit.check_address(ELSEWHERE, unauthenticated=False)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        submit.check_address(ELSEWHERE, unauthenticated=False)
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        with pytest.raises(ValueError, match="no token"):
            submit.check_address(ELSEWHERE, unauthenticated=False)
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("t" * 32)
        submit.check_address(ELSEWHERE, unauthenticated=False)

    def test_the_job_gets_a_local_runs_environment_and_what_is_given_wins(self, tmp_path: Path) -> None:
        environment = submit.runtime_env(["A=b=c", "RAY_TRAIN_METRICS_ENABLED=1"], str(tmp_path))
        assert environment["env_vars"] == {**QUIET_RAY, "A": "b=c", "RAY_TRAIN_METRICS_ENABLED": "1"}
        assert environment["working_dir"] == str(tmp_path.resolve())
        assert submit.runtime_env([], "none") == {"env_vars": QUIET_RAY}
        assert QUIET_RAY["RAY_USAGE_STATS_ENABLED"] == "0"

    def test_a_secret_variable_is_passed_on_with_a_word_of_warning(self, fake: "FakeCluster") -> None:
        output = run("--env", "WANDB_TOKEN=s3cret", "--env", "OMP_NUM_THREADS=1", "--", *COMMAND)
        assert fake.submitted[0]["runtime_env"]["env_vars"]["WANDB_TOKEN"] == "s3cret"
        assert "--env WANDB_TOKEN: whoever may see" in output
        assert "s3cret" not in output
        assert "OMP_NUM_THREADS" not in output

    def test_the_address_that_is_given_wins_over_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in submit.ADDRESS_VARIABLES:
            monkeypatch.setenv(name, "http://127.0.0.1:2")
        with pytest.raises(ValueError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:1 .*ray start --head"):
            run("--address", "http://127.0.0.1:1", "--", *COMMAND)
        with pytest.raises(ValueError, match=r"answers at http://127\.0\.0\.1:2 "):  # else it is the default
            run("--", *COMMAND)
        assert all(os.environ[name] == "http://127.0.0.1:2" for name in submit.ADDRESS_VARIABLES)


@dataclass
class FakeCluster:
    """Stands for JobSubmissionClient: `jobs` is what the cluster lists, `submitted` what it was asked to start."""

    jobs: dict[str, Any] = field(default_factory=dict)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    faster: str = ""  # the id that somebody else takes first
    fault: str = ""
    ends: str = "SUCCEEDED"
    log_breaks: bool = False

    def add(self, job: str, status: str, command: list[str] = COMMAND, **more: Any) -> None:
        from ray.job_submission import JobDetails, JobStatus

        metadata = {"command": shlex.join(command)}
        self.jobs[job] = JobDetails(
            type="SUBMISSION", submission_id=job, status=JobStatus(status), entrypoint="…", metadata=metadata, **more
        )

    def list_jobs(self) -> list[Any]:
        return list(self.jobs.values())

    def submit_job(self, **job: Any) -> None:
        if self.faster or self.fault:
            if self.faster:
                self.add(self.faster, "RUNNING")
            raise RuntimeError(f"Request failed with status code 500: {self.fault or 'already exists'}")
        self.submitted.append(job)
        self.add(job["submission_id"], "RUNNING")

    async def tail_job_logs(self, job: str) -> Any:
        yield "a line\n"
        await asyncio.sleep(0)
        if self.log_breaks:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_logs(self, job: str) -> str:
        return "all of the log\n"

    def stop_job(self, job: str) -> None:
        self.add(job, "STOPPED")

    def get_job_status(self, job: str) -> Any:
        return self.jobs[job].status

    def get_job_info(self, job: str) -> Any:
        self.add(job, self.ends, message="why it never ran")
        return self.jobs[job]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    cluster = FakeCluster()
    for module in (submit, running):
        monkeypatch.setattr(module, "connect", lambda address: cluster)
    return cluster


class TestOnce:
    ID = submit.job_id(COMMAND)

    @pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
    def test_a_running_command_is_followed_even_with_again(self, fake: FakeCluster, status: str) -> None:
        fake.add(self.ID, status)
        assert "a line" in run("--again", "--", *COMMAND)
        assert not fake.submitted

    def test_a_command_that_succeeded_runs_again_only_on_demand(self, fake: FakeCluster) -> None:
        fake.add(self.ID, "SUCCEEDED")
        assert "--again" in run("--", *COMMAND)
        assert not fake.submitted
        run("--again", "--", *COMMAND)
        assert [job["submission_id"] for job in fake.submitted] == [f"{self.ID}.2"]

    @pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
    def test_after_a_failure_the_last_attempt_counts_and_no_id_is_used_twice(
        self, fake: FakeCluster, status: str
    ) -> None:
        fake.add(self.ID, "SUCCEEDED")
        fake.add(f"{self.ID}.10", status)
        fake.add(f"{self.ID}.9", "SUCCEEDED")
        fake.add(f"{self.ID}0.11", "RUNNING", ["curate"])  # another job whose id begins in the same way
        run("--", *COMMAND)
        assert [job["submission_id"] for job in fake.submitted] == [f"{self.ID}.11"]

    def test_of_two_that_submit_at_once_one_follows_the_other(self, fake: FakeCluster) -> None:
        fake.faster = self.ID
        assert "a line" in run("--", *COMMAND)

    def test_a_refusal_of_the_cluster_is_no_job_of_somebody_else(self, fake: FakeCluster) -> None:
        fake.fault = "No available agent to submit job"
        with pytest.raises(ValueError, match=r"refuses the job .*No available agent"):
            run("--", *COMMAND)

    def test_a_name_is_not_given_to_two_commands(self, fake: FakeCluster) -> None:
        fake.add("nightly", "FAILED", ["curate", "other"])
        with pytest.raises(ValueError, match="'nightly' belongs to another job"):
            run("--id", "nightly", "--", *COMMAND)
        with pytest.raises(ValueError, match=r"'nightly\.2' is no job id"):
            run("--id", "nightly.2", "--", *COMMAND)


class TestFollowing:
    def test_a_job_that_failed_before_it_ran_says_why(self, fake: FakeCluster) -> None:
        fake.ends = "FAILED"
        assert "why it never ran" in run("--", *COMMAND, exit_code=1)

    def test_without_waiting_only_the_id_is_on_stdout(self, fake: FakeCluster) -> None:
        result = CliRunner().invoke(app, ["submit", "--no-wait", "--", *COMMAND], catch_exceptions=False)
        assert result.stdout == f"{submit.job_id(COMMAND)}\n"
        assert f"feral jobs stop {submit.job_id(COMMAND)} --address http://127.0.0.1:8265" in result.stderr

    def test_a_broken_connection_is_no_end_of_the_job(self, fake: FakeCluster) -> None:
        fake.log_breaks = True
        with pytest.raises(ValueError, match=r"lost sight of .*1006.*the same command follows it again"):
            run("--", *COMMAND)

    def test_a_log_that_ends_before_the_job_is_no_success(self, fake: FakeCluster) -> None:
        fake.ends = "RUNNING"
        with pytest.raises(ValueError, match="its log ended while it was RUNNING"):
            run("--", *COMMAND)


def jobs(*arguments: str, exit_code: int = 0) -> str:
    """The output of `feral jobs` in this process; what it raises passes through."""
    result = CliRunner().invoke(app, ["jobs", *arguments], catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result.output


class TestJobs:
    def test_lists_what_was_sent_by_its_command(self, fake: FakeCluster) -> None:
        assert "no jobs at" in jobs()
        fake.add("nightly", "RUNNING", ["curate", "dump"], start_time=1_795_000_000_000, end_time=1_795_000_061_000)
        assert [word for word in jobs().split() if word in ("nightly", "RUNNING", "curate")] == [
            "nightly", "RUNNING", "curate",
        ]  # fmt: skip
        assert "1 min 01 s" in jobs()

    def test_status_is_one_word_and_an_exit_status(self, fake: FakeCluster) -> None:
        fake.add("nightly", "RUNNING")
        fake.add("weekly", "FAILED", message="out of disk")
        assert jobs("status", "nightly") == "RUNNING\n"
        assert jobs("status", "weekly", exit_code=1) == "FAILED\nout of disk\n"
        with pytest.raises(ValueError, match=r"no job 'nigthly'; it knows nightly, weekly"):
            jobs("status", "nigthly")

    def test_stop_waits_for_the_end_and_log_prints(self, fake: FakeCluster) -> None:
        fake.add("nightly", "RUNNING")
        assert jobs("log", "nightly") == "all of the log\n"
        assert jobs("stop", "nightly").endswith("STOPPED\n")
        assert "has ended already" in jobs("stop", "nightly")

    def test_another_machine_without_a_token_is_refused_here_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(running, "connect", lambda address: pytest.fail(f"contacted {address}"))
        for arguments in (["--address", ELSEWHERE], ["stop", "x", "--address", ELSEWHERE]):
            with pytest.raises(ValueError, match="no token"):
                jobs(*arguments)


def run(*arguments: str, exit_code: int = 0) -> str:
    """The output of `feral submit` in this process; what it raises passes through."""
    result = CliRunner().invoke(app, ["submit", *arguments], catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result.output


@dataclass
class Cluster:
    """A real head node of our own, in token mode: Ray listens on all interfaces whatever it is told."""

    address: str
    token: str

    def submit(self, *arguments: str, token: str = "", verb: str = "submit", **options: Any) -> subprocess.Popen[str]:
        """A command on this cluster, as a process of its own, with an environment that names other clusters."""
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token or self.token,
            "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1",
            "RAY_ADDRESS": "auto",
        }
        line = [sys.executable, "-m", "jobs.cli", verb, "--address", self.address, *arguments]
        return subprocess.Popen(
            line, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        )

    def run(self, *arguments: str, token: str = "", verb: str = "submit") -> subprocess.CompletedProcess[str]:
        """The same, to its end."""
        with self.submit(*arguments, token=token, verb=verb) as process:
            stdout, stderr = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def client(self) -> Any:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self.address, headers={"Authorization": f"Bearer {self.token}"})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="feral", dir="/tmp"))  # short: a socket's path has at most 107 bytes
    port, dashboard, client = (str(free) for free in free_ports(3))
    token = secrets.token_hex(32)
    line = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
        "--port", port, "--ray-client-server-port", client, "--min-worker-port", "0", "--max-worker-port", "0",
        "--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard, "--dashboard-agent-listen-port", "0",
        "--num-cpus", "4", "--object-store-memory", "150000000", "--temp-dir", str(folder / "ray"),
    ]  # fmt: skip
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**outside, **QUIET_RAY, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "PYTHONUNBUFFERED": "1"}
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # else SIGTERM waits 30 s for idle actors
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            line, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 180
        while "Ray runtime started" not in (folder / "log").read_text():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield Cluster(f"http://127.0.0.1:{dashboard}", token)
    finally:  # never `ray stop`: it ends every Ray on the machine
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / "dump" / "cats"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "dump"


@pytest.mark.slow
@pytest.mark.cluster
class TestOnACluster:
    def test_a_command_works_on_the_cluster_and_is_not_started_twice(self, cluster: Cluster, dump: Path) -> None:
        import requests

        store = dump.parent / "store"
        arguments = [
            "--working-dir",
            str(dump.parent),
            "--",
            "curate",
            "dump",
            "--to",
            str(store),
        ]  # `dump` is uploaded
        first = cluster.run(*arguments)
        assert first.returncode == 0, first.stdout + first.stderr
        assert "6 seen = 6 kept + 0 refused" in first.stdout
        assert "SUCCEEDED" in first.stderr
        assert (store / "manifest.json").is_file()

        job = submit.job_id(arguments[3:])
        client = cluster.client()
        details = client.get_job_info(job)
        assert details.driver_info is not None  # it joined this cluster, and started none of its own
        bearer = {"Authorization": f"Bearer {cluster.token}"}
        answer = requests.get(f"{cluster.address}/api/v0/tasks?detail=1", headers=bearer, timeout=60).json()
        assert any(task["job_id"] == details.job_id for task in answer["data"]["result"]["result"])

        second = cluster.run(*arguments)
        assert second.returncode == 0
        assert "has SUCCEEDED already" in second.stderr
        assert [one.submission_id for one in client.list_jobs() if one.submission_id] == [job]

    def test_a_failing_command_ends_with_one_and_its_error(self, cluster: Cluster, tmp_path: Path) -> None:
        arguments = ["--", "curate", str(tmp_path / "nothing"), "--to", str(tmp_path / "store")]
        failed = cluster.run(*arguments)
        assert failed.returncode == 1, failed.stderr
        (line,) = [line for line in failed.stdout.splitlines() if line.startswith("error:")]
        assert str(tmp_path / "nothing") in line
        assert "FAILED (exit code 2)" in failed.stderr

    def test_ctrl_c_stops_following_and_a_stopped_job_starts_anew(self, cluster: Cluster, tmp_path: Path) -> None:
        slow = tmp_path / "slow"
        slow.write_text("#!/bin/sh\necho asleep\nexec sleep 300\n")
        slow.chmod(0o755)
        command = ["curate", str(tmp_path), "--to", "x"]
        job = submit.job_id(command)
        with cluster.submit("--python", str(slow), "--", *command, start_new_session=True) as process:
            assert process.stdout is not None
            assert any(line == "asleep\n" for line in process.stdout)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        assert process.returncode == submit.INTERRUPTED
        assert f"feral jobs stop {job} --address {cluster.address}" in stderr
        assert cluster.run("status", job, verb="jobs").stdout == "RUNNING\n"
        stopped = cluster.run("stop", job, verb="jobs")
        assert stopped.stdout == "STOPPED\n", stopped.stderr
        assert "asleep" in cluster.run("log", job, verb="jobs").stdout.splitlines()
        again = cluster.run("--python", "/bin/true", "--", *command)
        assert again.returncode == 0, again.stderr
        assert f"{job} has STOPPED" in again.stderr
        assert f"{job}.2 SUCCEEDED" in again.stderr

    def test_a_wrong_token_is_named_as_such(self, cluster: Cluster) -> None:
        refused = cluster.run("--", *COMMAND, token=secrets.token_hex(32))
        assert refused.returncode == 2
        assert "wants its token" in refused.stderr
