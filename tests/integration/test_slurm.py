"""The Slurm backend on a real slurmctld with three slurmd that have fake GPUs."""

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from actions import CONFIGURED, VERBS, Site
from actions.backends.slurm import Slurm, fields_of, node_of
from daemon.act import Executor, Patience
from daemon.frame import FrameBuilder
from daemon.jobs import look
from daemon.model import Entity, Outcome, Result, Step, TryAgain, Verb
from daemon.policy import Policy
from daemon.record import Record
from daemon.settings_backends import SlurmBackend
from daemon.settings_sources import SlurmJobs
from daemon.telemetry.catalogue import load_catalogue, shapes_of
from daemon.telemetry.jobs import job_lists

pytestmark = pytest.mark.integration

OWNER = "tidewarden/prod"
QUICK = Patience(apply_share=0.7, backoff_s=0.1, backoff_max_s=0.4, poll_s=0.1, poll_max_s=0.4)
NODES = ("n1", "n2", "n3")


def a_step(verb: Verb, target: str, id: str = "s1", **more: Any) -> Step:
    kind = "gpu" if "/gpu" in target else "node"
    args = (("node", target.partition("/")[0]), ("owner", OWNER))
    return Step(
        id, verb, Entity(kind, target), 1.0, "slow since 09:00", **({"deadline_s": 20.0, "args": args} | more)
    )


@dataclass
class Town:
    """A cluster of three nodes on one host. log : every process we started, by its role."""

    folder: Path
    binary: Callable[[str], str]
    ports: tuple[int, ...]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    def start(self) -> None:
        here = self.folder
        (here / "munge.key").write_bytes(os.urandom(1024))
        (here / "munge.key").chmod(0o600)
        for name in ("state", *(f"spool/{n}" for n in NODES)):
            (here / name).mkdir(parents=True)
        for gpu in range(2):
            os.mknod(here / f"gpu{gpu}", 0o20666, os.makedev(1, 3))
        lines = [
            f"NodeName={n} NodeAddr=127.0.0.1 NodeHostname=localhost Port={p} CPUs=4 Gres=gpu:2 State=UNKNOWN"
            for n, p in zip(NODES, self.ports[1:], strict=True)
        ]
        self.conf.write_text(
            dedent(f"""\
                ClusterName=tidewarden-test
                SlurmctldHost=localhost(127.0.0.1)
                SlurmctldPort={self.ports[0]}
                SlurmUser=root
                AuthType=auth/munge
                AuthInfo=socket={here}/munge.sock
                StateSaveLocation={here}/state
                SlurmdSpoolDir={here}/spool/%n
                SlurmctldPidFile={here}/slurmctld.pid
                SlurmdPidFile={here}/slurmd-%n.pid
                SlurmctldLogFile={here}/slurmctld.log
                SlurmdLogFile={here}/slurmd-%n.log
                SlurmdParameters=config_overrides
                ProctrackType=proctrack/linuxproc
                TaskPlugin=task/none
                SelectType=select/cons_tres
                SelectTypeParameters=CR_Core
                GresTypes=gpu
                PreemptType=preempt/partition_prio
                PreemptMode=REQUEUE
                KillWait=2
                ReturnToService=2
                SlurmctldTimeout=5
                MpiDefault=none
                SwitchType=switch/none
                JobCompType=jobcomp/none
                AccountingStorageType=accounting_storage/none
                SchedulerParameters=sched_interval=1,bf_interval=1
                """)
            + "\n".join(lines)
            + "\nPartitionName=online Nodes=n1,n2,n3 PriorityTier=10 PreemptMode=off Default=YES MaxTime=INFINITE\n"
            "PartitionName=offline Nodes=n1,n2,n3 PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE\n"
        )
        (here / "gres.conf").write_text(
            "".join(f"NodeName={n} Name=gpu File={here}/gpu[0-1]\n" for n in NODES)
        )
        keys = [
            "key-file=munge.key",
            "socket=munge.sock",
            "pid-file=munged.pid",
            "log-file=munged.log",
            "seed-file=munge.seed",
        ]
        options = [f"--{k}={here}/{v}" for k, v in (key.split("=") for key in keys)]
        self.begin("munged", [self.binary("munged"), "--foreground", "--force", *options])
        self.start_controller()
        for node in NODES:
            self.begin(node, [self.binary("slurmd"), "-D", "-N", node, "-f", str(self.conf)])
        self.until(lambda: self.states() == ["IDLE"] * 3, "three idle nodes")

    def start_controller(self) -> None:
        self.begin("slurmctld", [self.binary("slurmctld"), "-D", "-f", str(self.conf)])

    def begin(self, role: str, command: list[str]) -> None:
        with (self.folder / f"{role}.out").open("ab") as out:
            self.running[role] = subprocess.Popen(
                command, stdout=out, stderr=out, cwd=self.folder, env=self.env
            )

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.conf), "TZ": "UTC"}

    def ask(self, *command: str) -> str:
        ran = subprocess.run(
            command, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=15, check=False
        )
        return (ran.stdout + ran.stderr).strip()

    def states(self) -> list[str]:
        found = [
            fields_of(line).get("State", "")
            for line in self.ask("scontrol", "-o", "show", "node").splitlines()
        ]
        return [state.replace("+NOT_RESPONDING", "") for state in found]

    def node(self, name: str) -> dict[str, str]:
        return fields_of(self.ask("scontrol", "-o", "show", "node", name))

    def jobs(self, *states: str) -> dict[str, str]:
        """Job -> node, of those in these states."""
        rows = [line.split() for line in self.ask("squeue", "-h", "-O", "JobID,State,NodeList").splitlines()]
        return {row[0]: (row[2] if len(row) > 2 else "") for row in rows if row[1] in states}

    def submit(self, node: str, partition: str = "offline", minutes: int = 30, *more: str) -> str:
        command = [
            "sbatch",
            "--parsable",
            "-p",
            partition,
            "-w",
            node,
            f"-t{minutes}",
            "--gres=gpu:2",
            "-n4",
            "-o",
            "/dev/null",
            *more,
        ]
        return self.ask(*command, "--wrap", "exec sleep 300").splitlines()[-1]

    def until(self, is_so: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if is_so():
                return
            time.sleep(0.1)
        logs = {p.name: p.read_text(errors="replace")[-600:] for p in self.folder.glob("*.out")}
        pytest.fail(f"no {what} within {timeout_s:g} s: {self.states()}, {logs}")

    def clean(self) -> None:
        for job in self.jobs("RUNNING", "PENDING", "COMPLETING", "REQUEUED"):
            self.ask("scancel", job)
        for line in self.ask("scontrol", "-o", "show", "reservation").splitlines():
            if name := fields_of(line).get("ReservationName"):
                self.ask("scontrol", "delete", f"ReservationName={name}")
        for node in NODES:
            self.ask("scontrol", "update", f"NodeName={node}", "State=UNDRAIN")
        self.until(lambda: self.states() == ["IDLE"] * 3, "three idle nodes again")

    def stop(self) -> None:
        for job in self.jobs("RUNNING", "COMPLETING"):
            self.ask("scancel", job)
        for role in reversed(list(self.running)):
            process = self.running[role]
            if process.poll() is None:
                process.terminate()
        for process in self.running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def backend(self, **settings: Any) -> Slurm:
        tree = SlurmBackend.model_validate(
            {"kind": "slurm", "partitions": ["offline"], "conf": str(self.conf)} | settings
        )
        built = CONFIGURED["slurm"](tree.model_dump(), Site(Path("unused"), OWNER, time.time))
        assert isinstance(built, Slurm)
        return built

    async def run(self, step: Step, record: Record | None = None, **settings: Any) -> Outcome:
        action = VERBS[step.verb](self.backend(**settings))
        return await Executor({step.verb: action}, record or Record.open(None), time.time, QUICK).run(step)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, binary: Callable[[str], str]) -> Iterator[Town]:
    for name in ("munged", "slurmctld", "slurmd", "scontrol", "squeue", "sbatch"):
        binary(name)
    if os.geteuid() != 0:
        pytest.skip("slurmd runs jobs of others: needs root")
    ports = tuple(_free_port() for _ in range(4))
    town = Town(tmp_path_factory.mktemp("slurm"), binary, ports)
    try:
        town.start()
        yield town
    finally:
        town.stop()


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def town(cluster: Town) -> Iterator[Town]:
    yield cluster
    cluster.clean()


async def test_a_drained_node_takes_no_job_and_comes_back(town: Town) -> None:
    out = await town.run(a_step(Verb.ISOLATE, "n1", "s1"))
    during = town.node("n1")
    job = town.submit("n1")
    await asyncio.sleep(1.5)
    waiting = town.jobs("PENDING")
    back = await town.run(a_step(Verb.RELEASE, "n1", "s2"))
    town.until(lambda: job in town.jobs("RUNNING"), "running job")

    assert out.result is Result.DONE, out.detail
    assert "DRAIN" in during["State"]
    assert during["Reason"].startswith("tidewarden/prod s1 for=n1: slow since 09:00 [root@")
    assert job in waiting
    assert back.result is Result.DONE, back.detail


async def test_a_drain_of_somebody_else_is_left_alone(town: Town) -> None:
    town.ask("scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=bad fan, Kim")

    out = await town.run(a_step(Verb.ISOLATE, "n1", "s1"))
    back = await town.run(a_step(Verb.RELEASE, "n1", "s2"))

    assert [out.result, back.result] == [Result.REFUSED] * 2
    assert "already isolated by root (bad fan, Kim)" in out.detail
    assert town.node("n1")["Reason"].startswith("bad fan, Kim [")
    assert "DRAIN" in town.node("n1")["State"]


async def test_gpus_of_a_node_share_one_drain_that_ends_with_the_last(town: Town) -> None:
    steps = [(Verb.ISOLATE, "n2/gpu0"), (Verb.ISOLATE, "n2/gpu1"), (Verb.RELEASE, "n2/gpu0")]

    results = [(await town.run(a_step(verb, gpu, f"s{i}"))).result for i, (verb, gpu) in enumerate(steps)]
    between = town.node("n2")
    last = await town.run(a_step(Verb.RELEASE, "n2/gpu1", "s9"))

    assert [*results, last.result] == [Result.DONE] * 4
    assert "for=n2/gpu1:" in between["Reason"]
    assert "DRAIN" in between["State"]
    assert "DRAIN" not in town.node("n2")["State"]


async def test_what_an_operator_has_resumed_is_not_an_error(town: Town) -> None:
    await town.run(a_step(Verb.ISOLATE, "n1", "s1"))
    town.ask("scontrol", "update", "NodeName=n1", "State=RESUME")

    back = await town.run(a_step(Verb.RELEASE, "n1", "s2"))

    assert back.result is Result.DONE
    assert "in service already" in back.detail


async def test_a_lease_ends_in_the_calendar_and_a_recall_requeues_what_still_runs(town: Town) -> None:
    shut = await town.run(a_step(Verb.RECALL, "n3", "s0"))
    early = town.submit("n3")
    await asyncio.sleep(1.5)
    before = town.jobs("PENDING")
    lent = await town.run(a_step(Verb.LEND, "n3", "s1", until=time.time() + 3600))
    town.until(lambda: early in town.jobs("RUNNING"), "job on the lent node")
    too_long = town.submit("n3", "offline", 90)
    begun = time.monotonic()
    recalled = await town.run(a_step(Verb.RECALL, "n3", "s2"))
    took_s = time.monotonic() - begun

    assert [shut.result, lent.result, recalled.result] == [Result.DONE] * 3, (
        shut.detail,
        lent.detail,
        recalled.detail,
    )
    assert early in before
    assert early not in town.jobs("RUNNING", "COMPLETING")
    assert early in town.jobs("PENDING")  # back in the queue, not lost
    assert too_long in town.jobs("PENDING")  # would have run into the end of the lease
    assert took_s < 15.0
    assert "1 jobs went back to the queue" in recalled.detail


async def test_the_end_of_a_lease_holds_without_the_daemon(town: Town) -> None:
    await town.run(a_step(Verb.RECALL, "n3", "s0"))
    until = time.time() + 8
    await town.run(a_step(Verb.LEND, "n3", "s1", until=until))
    seen = await town.backend().observe(a_step(Verb.LEND, "n3"))

    await asyncio.sleep(max(0.0, until - time.time()) + 1)
    job = town.submit("n3", "offline", 1)
    await asyncio.sleep(2)

    assert seen["lent"] is True
    assert job in town.jobs("PENDING")
    assert (await town.backend().observe(a_step(Verb.RECALL, "n3"))) == {"lent": False, "until": 0.0}


async def test_a_job_of_another_partition_is_left_to_its_owner(town: Town) -> None:
    job = town.submit("n2", "online")
    town.until(lambda: job in town.jobs("RUNNING"), "online job")

    outcome = await town.run(a_step(Verb.RECALL, "n2"))

    assert outcome.result is Result.REFUSED
    assert f"still runs {job} of online" in outcome.detail
    assert job in town.jobs("RUNNING")


async def test_a_job_that_may_not_be_requeued_is_said_and_not_ended(town: Town) -> None:
    job = town.submit("n2", "offline", 30, "--no-requeue")
    town.until(lambda: job in town.jobs("RUNNING"), "job")

    outcome = await town.run(a_step(Verb.RECALL, "n2"))

    assert outcome.result is Result.REFUSED
    assert "submit offline jobs with --requeue" in outcome.detail
    assert job in town.jobs("RUNNING")


async def test_a_controller_killed_mid_step_leaves_unknown_and_then_the_world_tells(
    town: Town, tmp_path: Path
) -> None:
    record = Record.open(tmp_path)
    town.running["slurmctld"].kill()
    town.running["slurmctld"].wait()
    try:
        lost = await town.run(a_step(Verb.ISOLATE, "n1", "s1", deadline_s=3.0), record, timeout="1s")
    finally:
        town.start_controller()
        town.until(lambda: "UP" in town.ask("scontrol", "ping"), "controller")
        # A job that was cancelled just before may be known as running again: its end was not saved.
        town.ask("scancel", "--user=root")
        town.until(lambda: town.states() == ["IDLE"] * 3, "idle nodes", 90.0)
    # As after a crash of the daemon: the intent of another step stands, its end is not known.
    step = a_step(Verb.ISOLATE, "n1", "s2")
    record.intent(time.time(), step)
    await town.backend().apply(step)
    found = await town.run(step, record)
    record.close()

    assert lost.result is Result.UNKNOWN
    assert "Please check: is node n1 out of service" in lost.detail
    assert found.result is Result.DONE
    assert found.detail == "interrupted; the world shows it"


async def test_check_says_what_is_missing(town: Town) -> None:
    fine = await town.backend().check()
    wrong = await town.backend(partitions=["offline", "night"]).check()
    nowhere = await town.run(a_step(Verb.ISOLATE, "n9"))
    without = await town.backend(prefix=["/no/such/sudo"]).check()

    assert all(row.is_right for row in fine)
    assert [row.is_right for row in wrong] == [True, True, False]
    assert nowhere.result is Result.REFUSED
    assert "Slurm has no node n9" in nowhere.detail
    assert [row.is_right for row in without] == [False]


async def test_without_rights_the_remedy_is_said(town: Town) -> None:
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for folder in (town.folder, *town.folder.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)

    outcome = await town.run(a_step(Verb.ISOLATE, "n1"), prefix=prefix)
    checks = await town.backend(prefix=prefix).check()

    assert outcome.result is Result.REFUSED, outcome.detail
    assert "run as SlurmUser or an operator" in outcome.detail
    assert checks[0].fix == "give the rights below"


async def test_a_controller_that_restarts_in_the_middle_of_a_step_is_waited_for(town: Town) -> None:
    town.running["slurmctld"].kill()
    town.running["slurmctld"].wait()
    running = asyncio.create_task(town.run(a_step(Verb.ISOLATE, "n1", deadline_s=40.0), timeout="2s"))
    await asyncio.sleep(0.5)
    town.start_controller()
    outcome = await running
    town.until(lambda: "UP" in town.ask("scontrol", "ping"), "controller")

    assert outcome.result is Result.DONE, outcome.detail


async def test_a_controller_that_stands_still_is_given_up_in_time(town: Town) -> None:
    town.running["slurmctld"].send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(TryAgain, match=r"gave no answer within 0\.5 s"):
            await town.backend(timeout="500ms").observe(a_step(Verb.ISOLATE, "n1"))
        outcome = await town.run(a_step(Verb.ISOLATE, "n1", deadline_s=3.0), timeout="500ms")
    finally:
        town.running["slurmctld"].send_signal(signal.SIGCONT)
    town.until(lambda: "UP" in town.ask("scontrol", "ping"), "controller")

    assert outcome.result is Result.UNKNOWN
    assert "Please check: is node n1 out of service" in outcome.detail


async def test_a_reservation_that_somebody_deleted_is_written_again_by_the_recall(town: Town) -> None:
    lent = await town.run(a_step(Verb.LEND, "n3", id="s1", until=time.time() + 7200))
    for line in town.ask("scontrol", "-o", "show", "reservation").splitlines():
        town.ask("scontrol", "delete", f"ReservationName={fields_of(line)['ReservationName']}")

    recalled = await town.run(a_step(Verb.RECALL, "n3", id="s2"))
    names = [fields_of(line) for line in town.ask("scontrol", "-o", "show", "reservation").splitlines()]

    assert lent.result is recalled.result is Result.DONE, (lent.detail, recalled.detail)
    assert [(r["Nodes"], r["State"]) for r in names] == [("n3", "ACTIVE")]


def test_a_reason_may_say_anything() -> None:
    node = node_of(
        "NodeName=n1 OS=Linux 6.1 #1 State=IDLE*+DRAIN ThreadsPerCore=1 Reason=fan=0 [2] broken [kim@2026-11-24T04:58:48]\n"
    )

    assert node.is_drained
    assert (node.reason, node.user) == ("fan=0 [2] broken", "kim")
    assert node.scopes == []


async def test_running_jobs_are_listed_with_what_stopping_them_would_lose(town: Town, tmp_path: Path) -> None:
    saved = town.submit("n1", "offline", 30, f"--comment=checkpoint={time.time() - 120:.0f}")
    filed, online = town.submit("n2"), town.submit("n3", "online")
    town.until(lambda: {saved, filed, online} <= town.jobs("RUNNING").keys(), "three running jobs")
    (tmp_path / filed).mkdir()
    (tmp_path / filed / "step-1").write_text("weights")
    told = SlurmJobs(
        partitions=["offline"],
        conf=str(town.conf),
        checkpoint_file=f"{tmp_path}/{{id}}",
        nodes={"gpu-2": "n2"},
    )
    lists = job_lists({"slurm": told.model_dump()}, time.time, shapes_of(load_catalogue()))
    builder = FrameBuilder(Policy())

    for scrape in await lists.read():
        builder.absorb(scrape)
    known = look(builder.build(time.time()))

    found = {job.name: job for job in known.running}
    assert known.is_listed
    assert found.keys() == {f"slurm/{saved}", f"slurm/{filed}"}
    one, two = found[f"slurm/{saved}"], found[f"slurm/{filed}"]
    assert (one.nodes, one.gpus, one.saved_by) == (("n1",), 2.0, "comment")
    assert (two.nodes, two.gpus, two.saved_by) == (("gpu-2",), 2.0, "file")
    assert two.unsaved_s(known.at) < 60.0


async def test_a_controller_that_is_down_gives_no_list_and_no_job_is_made_up(town: Town) -> None:
    town.running["slurmctld"].terminate()
    town.running["slurmctld"].wait(10)
    told = SlurmJobs.model_validate({"conf": str(town.conf), "timeout": "3s"})
    lists = job_lists({"slurm": told.model_dump()}, time.time, shapes_of(load_catalogue()))

    (scrape,) = await lists.read()
    town.start_controller()
    town.until(lambda: town.states() == ["IDLE"] * 3, "a controller that is back")

    assert scrape.layout is None
    assert "squeue --json" in scrape.error
