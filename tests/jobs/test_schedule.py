"""What `feral schedule` writes is what each scheduler reads, and runs the tick that was meant."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.schedules.plan import Times
from tests.jobs.published import accept

LEDGER = "postgresql://feral@db.example/feral"
CYCLE = """
root = "production"
recipe = "simclr_32px"
images_per_dump = 128
{more}
[[sources]]
name = "web"
root = "incoming"
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose name no scheduler likes, with a cycle in it."""
    folder = tmp_path / 'a 100% "fine" $place'
    folder.mkdir()
    (folder / "Night Run.toml").write_text(CYCLE.format(more=""))
    monkeypatch.chdir(folder)
    monkeypatch.delenv("FERAL_LEDGER", raising=False)
    return folder


def schedule(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["schedule", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


class TestTimes:
    @pytest.mark.parametrize(
        ("every", "at", "cron", "calendar"),
        [
            (None, None, "0 * * * *", "*-*-* 0/1:00:00"),
            ("15m", None, "*/15 * * * *", "*-*-* *:0/15:00"),
            ("60m", None, "0 * * * *", "*-*-* 0/1:00:00"),
            ("6h", None, "0 */6 * * *", "*-*-* 0/6:00:00"),
            ("1d", None, "0 0 * * *", "*-*-* 00:00:00"),
            (None, "2:05", "5 2 * * *", "*-*-* 02:05:00"),
        ],
    )
    def test_are_written_as_cron_and_as_systemd_have_them(
        self, every: str | None, at: str | None, cron: str, calendar: str
    ) -> None:
        times = Times.parse(every, at)
        assert (times.cron, times.calendar) == (cron, calendar)

    @pytest.mark.parametrize("every", ["1m", "5m", "30m", "1h", "2h", "12h", "1d"])
    def test_both_mean_the_same_moments(self, every: str) -> None:
        times = Times.parse(every, None)
        assert moments(times.cron) == [minute for minute in range(24 * 60) if not minute * 60 % times.seconds_between]
        if shutil.which("systemd-analyze"):
            line = ["systemd-analyze", "calendar", "--iterations=3", times.calendar]
            said = subprocess.run(line, capture_output=True, text=True, check=True, env={"TZ": "UTC"}).stdout
            clock = [datetime.fromisoformat(found) for found in re.findall(r"\d{4}-\S+ \S+(?= UTC)", said)]
            assert {(b - a).total_seconds() for a, b in pairwise(clock)} == {times.seconds_between}
            assert all(60 * one.hour + one.minute in moments(times.cron) for one in clock)

    @pytest.mark.parametrize("every", ["7m", "90m", "5h", "2d", "0m", "15", "15s", ""])
    def test_what_cron_cannot_say_is_refused(self, every: str) -> None:
        if every:
            with pytest.raises(ValueError, match="divide an hour"):
                Times.parse(every, None)
        with pytest.raises(ValueError, match=r"no time of day|give one of them"):
            Times.parse(every, "24:00")


def moments(cron: str) -> list[int]:
    """Minutes of a day that a line of five fields names: numbers, * and */N."""
    minute, hour, *rest = cron.split()
    assert rest == ["*", "*", "*"]

    def fits(field: str, value: int) -> bool:
        return field == "*" or (value % int(field[2:]) == 0 if field.startswith("*/") else value == int(field))

    return [one for one in range(24 * 60) if fits(minute, one % 60) and fits(hour, one // 60)]


@pytest.fixture
def feral(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Stands for `feral`: what was run, and where, once it was."""
    script = tmp_path / "feral"
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$PWD" "$@" > "{tmp_path}/ran"\nexit "$(cat "{tmp_path}/code")"\n')
    script.chmod(0o755)
    (tmp_path / "code").write_text("0")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return lambda: (tmp_path / "ran").read_text().splitlines()


class TestCron:
    def test_its_line_runs_the_tick_from_anywhere(self, here: Path, feral: Callable[[], list[str]]) -> None:
        said = schedule("Night Run.toml", "--as", "cron", "--every", "30m")
        assert "crontab -" in said
        *settings, line = (here / "feral-night-run.cron").read_text().splitlines()[1:]
        assert [setting.partition("=")[0] for setting in settings] == ["SHELL", "PATH"]
        found = re.fullmatch(r"((?:\S+ ){5})(.*)", line)
        assert found is not None
        assert found[1].strip() == "*/30 * * * *"
        assert not re.search(r"(?<!\\)%", found[2])  # cron would end the line there
        environment = dict(setting.split("=") for setting in settings)
        subprocess.run(["/bin/sh", "-c", found[2].replace(r"\%", "%")], cwd="/", env=environment, check=True)
        assert feral() == [
            str(here), "tick", str(here / "Night Run.toml"), "--ledger", str(here / "runs" / "ledger.db"),
        ]  # fmt: skip
        assert (here / "feral-night-run.log").is_file()

    def test_knows_no_time_zone(self) -> None:
        with pytest.raises(ValueError, match="cron knows the machine's time zone only"):
            schedule("Night Run.toml", "--as", "cron", "--time-zone", "Europe/Berlin")


class TestSystemd:
    def test_its_units_are_what_systemd_reads(self, here: Path, feral: Callable[[], list[str]]) -> None:
        said = schedule(
            "Night Run.toml", "--as", "systemd", "--at", "02:30", "--time-zone", "Europe/Berlin", "--to", "units"
        )
        assert "systemctl --user enable --now feral-night-run.timer" in said
        service, timer = (here / "units" / f"feral-night-run.{kind}" for kind in ("service", "timer"))
        assert "SuccessExitStatus=10 20 30 143\n" in service.read_text()
        assert "Persistent=true\n" in timer.read_text()
        assert "OnCalendar=*-*-* 02:30:00 Europe/Berlin\n" in timer.read_text()
        assert "RandomizedDelaySec=300\n" in timer.read_text()

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
    def test_systemd_finds_no_fault(self, here: Path, tmp_path: Path, feral: Callable[[], list[str]]) -> None:
        for number, arguments in enumerate((["--every", "1m"], ["--every", "12h"], ["--at", "02:30"])):
            units = tmp_path / f"units{number}"
            schedule("Night Run.toml", "--as", "systemd", *arguments, "--to", str(units))
            files = [str(path) for path in sorted(units.iterdir())]
            checked = subprocess.run(
                ["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, check=False
            )
            assert (checked.returncode, [line for line in checked.stderr.splitlines() if "feral" in line]) == (0, [])

    def test_words_survive_systemds_quoting(self, here: Path, feral: Callable[[], list[str]]) -> None:
        schedule("Night Run.toml", "--as", "systemd")
        (line,) = re.findall(r"^ExecStart=(.*)$", (here / "feral-night-run.service").read_text(), re.MULTILINE)
        words = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]
        assert words[1:3] == ["tick", str(here / "Night Run.toml")]


class TestKubernetes:
    def test_a_cronjob_is_accepted_and_submits_the_tick(self, here: Path) -> None:
        said = schedule(
            "/shared/production.toml", "--as", "k8s-cronjob", "--every", "6h", "--ledger", LEDGER, "--image",
            "registry.example/feral:7", "--cluster", "big",
        )  # fmt: skip
        assert "SQLite" not in said
        manifest = yaml.safe_load((here / "feral-production-cronjob.yaml").read_text())
        accept(manifest)
        spec = manifest["spec"]
        assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == ("0 */6 * * *", "Etc/UTC", "Forbid")
        (container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        assert container["image"] == "registry.example/feral:7"
        words = [*container["command"], *container["args"]]
        assert words[:3] == ["feral", "submit", "--again"]
        assert words[words.index("--address") + 1] == "http://big-head-svc:8265"
        assert words[words.index("--") + 1 :] == ["tick", "/shared/production.toml", "--ledger", LEDGER, "--exit-zero"]
        assert container["env"][1]["valueFrom"]["secretKeyRef"]["name"] == "big"

    def test_the_words_of_a_cronjob_are_options_of_feral_submit(self, here: Path, monkeypatch: Any) -> None:
        from jobs import submit

        schedule("/shared/production.toml", "--as", "k8s-cronjob", "--ledger", LEDGER)
        (container,) = yaml.safe_load((here / "feral-production-cronjob.yaml").read_text())["spec"]["jobTemplate"][
            "spec"]["template"]["spec"]["containers"]  # fmt: skip
        monkeypatch.setattr(submit, "check_command", lambda command: None)  # `tick` is a command of its own
        reached: list[str] = []

        def connect(address: str) -> None:
            reached.append(address)
            raise ValueError("far enough")

        monkeypatch.setattr(submit, "connect", connect)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 32)
        with pytest.raises(ValueError, match="far enough"):
            CliRunner().invoke(app, [*container["command"][1:], *container["args"]], catch_exceptions=False)
        assert reached == ["http://feral-head-svc:8265"]

    def test_a_raycronjob_is_accepted_and_called_alpha(self, here: Path) -> None:
        said = schedule("/shared/production.toml", "--as", "raycronjob", "--at", "04:00", "--time-zone", "Asia/Tokyo")
        assert "ALPHA" in said
        text = (here / "feral-production-raycronjob.yaml").read_text()
        assert "ALPHA" in text.splitlines()[0]
        manifest = yaml.safe_load(text)
        accept(manifest)
        assert (manifest["spec"]["schedule"], manifest["spec"]["timeZone"]) == ("0 4 * * *", "Asia/Tokyo")
        assert shlex.split(manifest["spec"]["jobTemplate"]["entrypoint"])[-1] == "--exit-zero"

    def test_sqlite_is_warned_of(self) -> None:
        said = schedule("/shared/production.toml", "--as", "k8s-cronjob")
        assert "FERAL_LEDGER in the pods names, else a SQLite file" in " ".join(said.split())
        said = schedule("/shared/production.toml", "--as", "k8s-cronjob", "--ledger", "mine.db", "--overwrite")
        assert "the ledger /shared/mine.db is a SQLite file" in " ".join(said.split())

    @pytest.mark.parametrize("kind", ["k8s-cronjob", "raycronjob"])
    def test_the_pods_ask_their_own_file_and_environment_for_the_ledger(
        self, here: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FERAL_LEDGER", "/home/me/ledger.db")  # of this machine
        schedule("/shared/production.toml", "--as", kind)
        assert "--ledger" not in (here / f"feral-production-{kind.removeprefix('k8s-')}.yaml").read_text()

    def test_a_path_of_this_machine_is_refused(self) -> None:
        with pytest.raises(ValueError, match="give the path that the pods see"):
            schedule("Night Run.toml", "--as", "k8s-cronjob")


class SkipTask(Exception):
    pass


class FailTask(Exception):
    pass


class TestAirflow:
    @pytest.fixture
    def dag(self, here: Path, feral: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """The DAG, imported with a stub of Airflow: what it declares, and its task."""
        schedule("Night Run.toml", "--as", "airflow", "--at", "02:30", "--time-zone", "Europe/Berlin")
        made = SimpleNamespace(declared={}, task=None, module=None)
        sdk, exceptions = ModuleType("airflow.sdk"), ModuleType("airflow.sdk.exceptions")

        def declare(**options: Any) -> Any:
            made.declared = options
            return lambda function: function

        def register(**options: Any) -> Any:
            def keep(function: Any) -> Any:
                made.task = function
                return lambda: None

            return keep

        sdk.dag, sdk.task = declare, register  # type: ignore[attr-defined]
        exceptions.AirflowException, exceptions.AirflowSkipException = FailTask, SkipTask  # type: ignore[attr-defined]
        for module in (ModuleType("airflow"), sdk, exceptions):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        file = here / "feral_night_run_dag.py"
        made.module = {"__name__": "dag"}
        exec(compile(file.read_text(), file, "exec"), made.module)
        return made

    def test_declares_one_run_at_a_time_and_no_catching_up(self, dag: SimpleNamespace) -> None:
        declared = dag.declared
        assert (declared["dag_id"], declared["schedule"]) == ("feral-night-run", "30 2 * * *")
        assert (declared["catchup"], declared["max_active_runs"]) == (False, 1)
        assert str(declared["start_date"].tzinfo) == "Europe/Berlin"

    @pytest.mark.parametrize(("code", "raises"), [(0, None), (10, SkipTask), (20, None), (30, None), (1, FailTask)])
    def test_runs_the_tick_and_maps_its_exit_status(
        self, dag: SimpleNamespace, here: Path, tmp_path: Path, feral: Callable[[], list[str]], code: int,
        raises: type[Exception] | None,
    ) -> None:  # fmt: skip
        (tmp_path / "code").write_text(str(code))
        if raises is None:
            dag.task()
        else:
            with pytest.raises(raises):
                dag.task()
        assert feral()[:3] == [str(here), "tick", str(here / "Night Run.toml")]


class TestForAll:
    @pytest.mark.parametrize("kind", ["cron", "systemd", "airflow"])
    def test_a_file_that_is_not_there_is_named(self, kind: str) -> None:
        with pytest.raises(ValueError, match=r"there is no file nothing\.toml"):
            schedule("nothing.toml", "--as", kind)

    @pytest.mark.parametrize(("kind", "suffix"), [("cron", "cron"), ("systemd", "service")])
    def test_a_ledger_that_the_cycle_names_stays_its_ledger(
        self, here: Path, kind: str, suffix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = f"feral-night-run.{suffix}"
        monkeypatch.setenv("FERAL_LEDGER", "another.db")
        (here / "Night Run.toml").write_text(CYCLE.format(more='ledger = "mine.db"'))
        schedule("Night Run.toml", "--as", kind)
        assert "--ledger" not in (here / file).read_text()
        schedule("Night Run.toml", "--as", kind, "--ledger", "given.db", "--overwrite")
        assert "given.db" in (here / file).read_text()

    def test_a_cycle_that_no_tick_could_read_is_told_at_once(self, here: Path) -> None:
        (here / "Night Run.toml").write_text(CYCLE.format(more="replay_share = 2"))
        with pytest.raises(ValueError, match="replay_share=2: should be less than 1"):
            schedule("Night Run.toml", "--as", "cron")

    def test_a_password_is_never_written(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FERAL_LEDGER", "postgresql://feral:hunter2@db.example/feral")
        with pytest.raises(ValueError, match=r"feral:\*\*\*@db.example/feral holds a password.*PGPASSWORD"):
            schedule("Night Run.toml", "--as", "cron")
        assert [path.name for path in here.iterdir()] == ["Night Run.toml"]

    def test_what_a_person_changed_is_kept(self, here: Path) -> None:
        schedule("Night Run.toml", "--as", "cron")
        schedule("Night Run.toml", "--as", "cron")  # the same again
        (here / "feral-night-run.cron").write_text("mine")
        with pytest.raises(ValueError, match="--overwrite"):
            schedule("Night Run.toml", "--as", "cron")
        schedule("Night Run.toml", "--as", "cron", "--overwrite")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--name", "Night Run"], "small letters"),
            (["--time-zone", "Berlin"], "no time zone"),
            (["--image", "feral:7"], "--as systemd has none"),
            (["--cluster", "big"], "--as systemd has none"),
            (["--every", "15m", "--at", "02:30"], "give one of them"),
        ],
    )
    def test_mistakes_are_explained(self, arguments: list[str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            schedule("Night Run.toml", "--as", "systemd", *arguments)
