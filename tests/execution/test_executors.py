"""Claims about where jobs run: real processes, real signals, and a real Ray on the loopback."""

# ruff: noqa: PT012 (the claim about a deferred signal needs several statements)

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from multiprocessing import forkserver
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

import commands
import jobs
import needs
import psutil
import pytest
from hydra.core.utils import JobReturn, JobStatus
from jobs import application, job, started
from rich.console import Console

from kdsweep.execution import workers
from kdsweep.execution.executors import Executor, open_executor, ray_cluster
from kdsweep.execution.jobs import Job, Outcome, Task, in_words, run_job
from kdsweep.system import interrupts, progress
from kdsweep.system.errors import RunError, UserError
from kdsweep.system.files import short_folder


@pytest.fixture
def task(tmp_path: Path) -> Iterator[Task]:
    """The application whose jobs run here."""
    with application(tmp_path) as ours:
        yield ours


@pytest.fixture
def two(task: Task, monkeypatch: pytest.MonkeyPatch) -> Iterator[Executor]:
    """Two worker processes."""
    # All tests share one server, started as the tests of commands start it: with more modules, and with SIGINT.
    monkeypatch.setattr(workers, "PRELOADED", commands.PRELOADED)
    forkserver.set_forkserver_preload(commands.PRELOADED)
    forkserver.ensure_running()
    with closing(opened("workers", task, 2)) as executor:
        yield executor


def opened(name: str, task: Task, n_jobs: int = 1, launcher: Any = None, **options: Any) -> Executor:
    return open_executor(name, task, launcher, n_jobs, **{"device": "cpu", **options})


def only(executor: Executor, name: str = "one", **values: object) -> Outcome:
    """Runs a job while nothing else runs, and returns its outcome."""
    executor.submit(job(name, **values))
    ((_, outcome),) = executor.wait()
    return outcome


def all_of(executor: Executor, count: int) -> list[tuple[Job, Outcome]]:
    """Waits for this many jobs, and returns their outcomes in the order of their end."""
    ends: list[tuple[Job, Outcome]] = []
    while len(ends) < count:
        ends += executor.wait()
    return ends


def eventually(condition: Callable[[], bool]) -> None:
    """Waits until the condition holds."""
    limit = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_job_returns_its_value(task: Task) -> None:
    """It is what the task function returns for the configuration with the job's overrides."""
    assert run_job(task, job("one", value=3)) == Outcome(3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("teacher-0", "teacher, seed 0"),
        ("label_smoothing-12", "label smoothing, seed 12"),
        ("trial-0037", "trial 37"),
        ("confirm-trial-0000-1000", "confirmation of trial 0, seed 1000"),
        ("confirm-label_smoothing-1004", "confirmation of label smoothing, seed 1004"),
        ("confirm-shuffled-trial-0003-1000", "confirmation of shuffled (trial 3), seed 1000"),
        ("a name/of another kind", "a name/of another kind"),
    ],
)
def test_a_job_is_named_in_words(name: str, words: str) -> None:
    """People read what a job does; records keep its name."""
    assert in_words(name) == words


def test_a_job_has_a_folder_of_its_name(task: Task, tmp_path: Path) -> None:
    """A resumed study's trial finds the folder that it had before."""
    assert run_job(task, job("trial-0007", action="hydra")).value == (f"{tmp_path}/sweep/trial-0007", "trial-0007", 0)


def test_a_jobs_error_is_its_outcome(task: Task) -> None:
    """Both an error of the job and a refused configuration are left to the study."""
    refused, misspelt = run_job(task, job("one", action="refuse")), run_job(task, job("two", vlaue=3))
    assert isinstance(refused.error, UserError)
    assert "Could not override 'vlaue'" in str(misspelt.error)
    assert not refused.lost
    assert not misspelt.lost


def test_a_job_can_not_leave_the_study(task: Task) -> None:
    """`sys.exit` in a job ends the job."""
    assert str(run_job(task, job("one", action="leave")).error) == "the job ended by sys.exit(3)"


def test_a_job_leaves_stderr_alone(task: Task, capfd: pytest.CaptureFixture[str]) -> None:
    """Hydra's own lines about a failed job don't reach the terminal."""
    run_job(task, job("one", action="refuse"))
    assert capfd.readouterr().err == ""


def test_ctrl_c_passes_through_a_job(task: Task) -> None:
    """It ends the whole study, not only the job."""
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_job(task, job("one", seconds=20))
    finally:
        signal.signal(signal.SIGALRM, before)


def test_in_process_is_this_process(task: Task) -> None:
    """No process is started, and data stay in memory."""
    with closing(opened("in_process", task)) as executor:
        value: Any = only(executor, action="describe").value
    assert value["pid"] == os.getpid()


def test_in_process_refuses_two_jobs(task: Task) -> None:
    """The message names the executor that runs them."""
    with pytest.raises(UserError, match=r"n_jobs == 1 in process.*got n_jobs=2.*sweep.executor=workers"):
        opened("in_process", task, 2)


@pytest.mark.parametrize(("name", "n_jobs", "match"), [("dask", 1, "'workers', 'ray'"), ("workers", 0, "n_jobs >= 1")])
def test_what_is_no_executor_is_refused(task: Task, name: str, n_jobs: int, match: str) -> None:
    """An unknown name lists the four."""
    with pytest.raises(UserError, match=match):
        opened(name, task, n_jobs)


def test_without_ray_its_executor_names_the_extra(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray comes with an extra."""
    monkeypatch.delitem(sys.modules, "kdsweep.execution.ray", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"sweep.executor: Ray isn't installed.*kdsweep\[ray\]"):
        opened("ray", task)


@pytest.mark.all
@pytest.mark.slow
# In the process of the tests that keep a Ray running, and before them.
@pytest.mark.xdist_group("tests/execution/test_executors.py")
def test_a_cluster_that_is_not_there_is_refused(task: Task) -> None:
    """The refusal comes at once, and says how to do without a cluster."""
    needs.package("ray")
    refused = r"ray_address: no Ray answers at '127.0.0.1:1' .*refused.* `local` to start Ray"
    with pytest.raises(UserError, match=refused):
        opened("ray", task, ray_address="127.0.0.1:1")


class Batches:
    """A launcher that gives the answers it is told to give, and remembers its calls."""

    def __init__(self, *answers: JobReturn | Exception) -> None:
        self.answers = answers
        self.asked: list[tuple[list[list[str]], int]] = []

    def launch(self, overrides: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
        self.asked.append((overrides, initial_job_idx))
        for answer in self.answers:
            if isinstance(answer, Exception):
                raise answer
        return [answer for answer in self.answers if isinstance(answer, JobReturn)]


def answer(status: JobStatus, value: object) -> JobReturn:
    return JobReturn(status=status, _return_value=value)


def test_a_launcher_gets_batches(task: Task) -> None:
    """It gets as many jobs as there are slots, each with its own folder, and its answers belong to them in order."""
    failed = RunError("diverged")
    launcher = Batches(answer(JobStatus.COMPLETED, 1), answer(JobStatus.FAILED, failed))
    executor = opened("launcher", task, 2, launcher)
    jobs = [job("a", value=1), job("b", value=2)]
    for each in jobs:
        executor.submit(each)
    assert executor.wait() == [(jobs[0], Outcome(1)), (jobs[1], Outcome(error=failed))]
    assert launcher.asked == [([["value=1", "hydra.sweep.subdir=a"], ["value=2", "hydra.sweep.subdir=b"]], 0)]


def test_a_launcher_that_fails_has_lost_its_batch(task: Task) -> None:
    """No job raised its error, so the jobs may be tried again. If it always fails, its error is one line."""
    executor = opened("launcher", task, 1, Batches(OSError("sbatch:\nnot found")))
    outcome = only(executor)
    assert outcome.lost
    assert isinstance(outcome.error, RunError)
    assert str(outcome.error) == "Batches failed (OSError: sbatch: not found)"


def test_hydras_own_launcher_runs_jobs(task: Task, tmp_path: Path) -> None:
    """The real launcher runs a job in the job's own folder."""
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    launcher = BasicLauncher()
    launcher.setup(hydra_context=task.hydra_context, task_function=task.task_function, config=task.config)
    value: Any = only(opened("launcher", task, 1, launcher), "trial-1", action="hydra").value
    assert value[0] == f"{tmp_path}/sweep/trial-1"


@pytest.mark.slow
def test_a_free_slot_is_refilled_at_once(two: Executor, tmp_path: Path) -> None:
    """A short job doesn't wait for the long one beside it, and each process stays."""
    two.submit(job("long", action="describe", seconds=60, until=tmp_path / "go"))
    pids = [only(two, f"short-{number}", action="describe").value["pid"] for number in range(3)]  # type: ignore[index]
    (tmp_path / "go").touch()
    ((last, outcome),) = two.wait()
    assert last.name == "long"
    assert len({*pids, outcome.value["pid"]}) == 2  # type: ignore[index]


@pytest.mark.slow
def test_a_killed_worker_loses_one_job(two: Executor, tmp_path: Path) -> None:
    """Its outcome says how it died, the job beside it goes on, and another process takes its slot."""
    two.submit(job("beside", value=1, seconds=60, until=tmp_path / "go"))
    lost = only(two, "dies", action="die")
    assert lost.lost
    assert str(lost.error) == "the worker process of dies was ended by SIGKILL (out of memory?)"
    assert only(two, value=2) == Outcome(2)
    (tmp_path / "go").touch()
    ((_, beside),) = two.wait()
    assert beside == Outcome(1)


@pytest.mark.slow
def test_a_worker_killed_between_jobs_is_replaced(two: Executor) -> None:
    """The next job doesn't notice."""
    before: Any = only(two, action="describe").value
    os.kill(before["pid"], signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(before["pid"]))
    assert only(two, value=2) == Outcome(2)


@pytest.mark.slow
def test_errors_come_back_from_workers(two: Executor) -> None:
    """They arrive unchanged, or as a RunError with type and message; a result that can't be sent is an error."""
    refused, failed, unsent = (only(two, action=action).error for action in ("refuse", "fail", "lock"))
    assert isinstance(refused, UserError)
    assert str(refused) == "value: `value > 0` must hold."
    assert isinstance(failed, RunError)
    assert str(failed) == "TwoArgumentsError: out of luck"
    assert 'raise TwoArgumentsError("out of", "luck")' in failed.__notes__[0]
    assert str(unsent).startswith("the job's result, a lock, can't be sent to the study")


@pytest.mark.slow
def test_a_worker_has_this_process_environment(two: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment and folder are as they are now, each library has one thread, and there are no progress bars."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///here.db")
    monkeypatch.chdir(tmp_path)
    value: Any = only(two, action="describe").value
    expected = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "KDSWEEP_PLAIN": "1"}
    assert {**expected, "MLFLOW_TRACKING_URI": "sqlite:///here.db"}.items() <= value["environment"].items()
    assert value["folder"] == str(tmp_path)


def test_a_worker_shows_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even on a terminal, where the bars of several workers would overwrite one another."""
    buffer = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=buffer, force_terminal=True, width=100))
    monkeypatch.setenv("KDSWEEP_PLAIN", "1")
    with progress.progress("training", 2, "pictures") as advance:
        advance(2)
    assert buffer.getvalue() == ""


@pytest.mark.slow
def test_what_a_worker_prints_comes_to_our_terminal(two: Executor, capfd: pytest.CaptureFixture[str]) -> None:
    """It doesn't matter where the server that forked the worker prints."""
    only(two, action="print")
    assert capfd.readouterr().err == "a line of the job\n"


@pytest.mark.slow
def test_a_worker_without_a_job_computes_ahead(task: Task, tmp_path: Path) -> None:
    """It computes passes for its last job's teacher until the next job comes."""
    with closing(opened("workers", task, 1)) as executor:
        only(executor, action="remember")
        eventually((tmp_path / "ahead").exists)
        assert only(executor, value=3).value == 3


def test_slots_take_gpus_in_turns(task: Task) -> None:
    """Three workers share two GPUs."""
    with closing(workers.Workers(task, 3, 1, ["4", "7"])) as executor:
        for number in range(3):
            executor.submit(job(f"job-{number}", action="describe", seconds=0.5))
        values: list[Any] = [outcome.value for _, outcome in all_of(executor, 3)]
    assert sorted(value["environment"]["CUDA_VISIBLE_DEVICES"] for value in values) == ["4", "4", "7"]


@pytest.mark.slow
def test_gpus_are_bound_where_there_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers get the names that the environment allows; a device by name, or a single GPU, leaves no choice."""
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert workers.gpus("auto") == ("GPU-a", "GPU-b")
    assert workers.gpus("cuda:1") == workers.gpus("cpu") == ()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert workers.gpus("cuda") == ()


@pytest.mark.slow
def test_close_ends_jobs_as_sigterm_does(two: Executor, tmp_path: Path) -> None:
    """A job can then close its MLflow run as killed."""
    two.submit(job("long", seconds=100))
    eventually(lambda: len(started(tmp_path)) == 1)
    (pid,) = started(tmp_path)
    two.close()
    assert (tmp_path / f"{pid}.ended").read_text() == "TerminatedError"
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
def test_a_deferred_signal_ends_the_wait(two: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study waits while its own MLflow run is open, and an open run defers signals."""
    monkeypatch.setattr(interrupts, "PATIENCE_SECONDS", 100.0)
    before = {number: signal.getsignal(number) for number in interrupts.ENDS}
    interrupts.install()
    try:
        with pytest.raises(interrupts.TerminatedError), interrupts.deferred():
            two.submit(job("long", seconds=8))
            os.kill(os.getpid(), signal.SIGTERM)
            two.wait()
            pytest.fail("the wait lasted as long as the job")
    finally:
        interrupts.forget()
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.slow
def test_a_second_sigterm_cuts_nothing_short(two: Executor, tmp_path: Path) -> None:
    """A second one comes if the first went to the whole process group; the MLflow run must still be closed."""
    two.submit(job("long", seconds=100))
    eventually(lambda: len(started(tmp_path)) == 1)
    os.kill(started(tmp_path).pop(), signal.SIGTERM)
    time.sleep(0.1)  # the job closes its run
    two.close()
    assert ends(tmp_path) == ["TerminatedError"]


@pytest.mark.slow
def test_a_worker_does_not_hear_ctrl_c(two: Executor, tmp_path: Path) -> None:
    """Its parent decides what it means, and ignores it under `nohup`."""
    two.submit(job("long", value=1, seconds=1))
    eventually(lambda: len(started(tmp_path)) == 1)
    os.kill(started(tmp_path).pop(), signal.SIGINT)
    assert two.wait()[0][1] == Outcome(1)


@pytest.mark.slow
def test_close_kills_what_does_not_end(two: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that ignores SIGTERM gets `GRACE_SECONDS` and no more."""
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.2)
    two.submit(job("deaf", action="deaf", seconds=100))
    eventually(lambda: len(started(tmp_path)) == 1)
    two.close()
    assert not alive(started(tmp_path))


def start_study(*words: object, **env: str) -> subprocess.Popen[str]:
    """Starts a study in a process group of its own, as a terminal does."""
    command = [sys.executable, "-W", "error", jobs.__file__, *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0, env={**os.environ, **env})


def long_folder(folder: Path) -> str:
    """Makes a folder whose name is longer than a socket's can be."""
    made = folder / ("long" * 25)
    made.mkdir()
    return str(made)


def study(folder: Path, executor: str, **env: str) -> subprocess.Popen[str]:
    """Starts a study, and waits until its two jobs run."""
    process = start_study(folder, executor, **env)
    eventually(lambda: len(started(folder)) == 2 or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


def alive(pids: set[int]) -> set[int]:
    found = set()
    for pid in pids:
        with suppress(psutil.NoSuchProcess):  # it may end between two questions
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.add(pid)
    return found


def ends(folder: Path) -> list[str]:
    """Returns the exceptions that ended jobs, as far as they could write them down."""
    return [path.read_text() for path in folder.glob("*.ended")]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_to_the_group_end_study_and_jobs(tmp_path: Path, number: int, status: int) -> None:
    """Ctrl-C reaches all processes: each job is ended once, and one line is printed."""
    process = study(tmp_path, "workers")
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, len(err.splitlines())) == (status, 1), err
    assert ends(tmp_path) == ["TerminatedError", "TerminatedError"]
    assert not alive(started(tmp_path))


@pytest.mark.slow
def test_ctrl_c_before_the_first_job_is_quiet(tmp_path: Path) -> None:
    """While the server imports what jobs need, it doesn't hear Ctrl-C, and so prints no stack trace."""
    process = start_study(tmp_path, "workers", "torch")
    shell = psutil.Process(process.pid)
    eventually(lambda: any("forkserver" in " ".join(child.cmdline()) for child in shell.children()))
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "jobs: interrupted\n")


@pytest.mark.slow
def test_no_job_survives_its_study(tmp_path: Path) -> None:
    """After kill -9 of the study, its workers close their runs and end, and so does their server.

    TMPDIR is longer than the name of a socket can be.
    """
    process = study(tmp_path, "workers", TMPDIR=long_folder(tmp_path))
    family = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    assert started(tmp_path) <= family
    # The server got this when it started, because its libraries read it on import.
    assert {psutil.Process(pid).environ()["OMP_NUM_THREADS"] for pid in started(tmp_path)} == {"2"}
    process.kill()
    eventually(lambda: not alive(family))
    _, err = process.communicate()
    assert (ends(tmp_path), err) == (["TerminatedError", "TerminatedError"], "")


@pytest.mark.slow
def test_a_server_that_can_not_start_is_one_line(tmp_path: Path) -> None:
    """The line has the last one that the server printed, and says what helps."""
    (tmp_path / "dies.py").write_text("import os\nos.write(2, b'first\\ncannot load libfoo.so\\n')\nos._exit(127)\n")
    process = start_study(tmp_path, "workers", "dies", PYTHONPATH=os.pathsep.join([*sys.path, str(tmp_path)]))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("jobs: a worker process could not be started (")
    assert "; cannot load libfoo.so). " in err
    assert "ulimit -u" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_what_the_server_says_as_it_ends_is_not_heard(tmp_path: Path) -> None:
    """Libraries that it has loaded may complain ("nanobind: leaked 514 functions!") when the command is over."""
    (tmp_path / "talks.py").write_text("import atexit, os\natexit.register(os.write, 2, b'leaked 514 functions!\\n')\n")
    process = start_study(tmp_path, "workers", "talks", PYTHONPATH=os.pathsep.join([*sys.path, str(tmp_path)]))
    eventually(lambda: len(started(tmp_path)) == 2 or process.poll() is not None)
    family = {child.pid for child in psutil.Process(process.pid).children()}
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    eventually(lambda: not alive(family))
    assert (process.returncode, err) == (130, "jobs: interrupted\n")


def test_sockets_have_short_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a short name is taken as it is; another one gives way to one of the system's."""
    monkeypatch.setattr(tempfile, "tempdir", long_folder(tmp_path))
    with workers._short_sockets(), tempfile.TemporaryDirectory(prefix="pymp-") as made, socket(AF_UNIX) as listener:
        listener.bind(f"{made}/listener-12345678")
    assert tempfile.gettempdir() == str(tmp_path / ("long" * 25))
    assert short_folder(tmp_path, 100) == tmp_path
    with pytest.raises(UserError, match=r"^TMPDIR: `the folder of sockets has at most 2 bytes` must hold, but got /"):
        short_folder(tmp_path, 2)


@pytest.mark.parametrize(
    ("key", "variable", "cluster"),
    [(None, None, None), (None, "a:1", "a:1"), ("b:2", "a:1", "b:2"), ("local", "a:1", None), (None, "local", None)],
)
def test_rays_own_variable_names_its_cluster(
    key: str | None, variable: str | None, cluster: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration's key wins over it."""
    monkeypatch.setenv("RAY_ADDRESS", variable or "")
    assert ray_cluster(key) == cluster


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """A real Ray on the loopback, which takes seconds to start.

    TMPDIR is longer than the name of a socket can be, and RAY_ADDRESS names a cluster that isn't there.
    """
    folder = tmp_path_factory.mktemp("ray")
    with application(folder) as task:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", long_folder(folder))
            patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
            executor = opened("ray", task, 2, ray_address="local")
        with closing(executor):
            yield executor


@pytest.mark.all
@pytest.mark.slow
def test_ray_runs_jobs(on_ray: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in another process with this one's folder and environment; errors come back as from workers."""
    monkeypatch.chdir(tmp_path)
    value: Any = only(on_ray, action="describe").value
    assert (value["pid"] != os.getpid(), value["folder"]) == (True, str(tmp_path))
    assert {"OMP_NUM_THREADS": "1", "KDSWEEP_PLAIN": "1"}.items() <= value["environment"].items()
    refused, failed = (only(on_ray, action=action).error for action in ("refuse", "fail"))
    assert str(refused) == "value: `value > 0` must hold."
    assert str(failed) == "TwoArgumentsError: out of luck"


@pytest.mark.all
@pytest.mark.slow
def test_ray_refills_a_free_slot_at_once(on_ray: Executor, tmp_path: Path) -> None:
    """A short job doesn't wait for the long one beside it."""
    on_ray.submit(job("long", value=9, seconds=60, until=tmp_path / "go"))
    assert [only(on_ray, f"short-{number}", value=number).value for number in range(3)] == [0, 1, 2]
    (tmp_path / "go").touch()
    assert [(last.name, outcome.value) for last, outcome in on_ray.wait()] == [("long", 9)]


@pytest.mark.all
@pytest.mark.slow
def test_a_worker_killed_on_ray_loses_one_job(
    on_ray: Executor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The job beside it goes on, the next one runs, and only Ray's own line about it may be printed."""
    on_ray.submit(job("beside", value=1, seconds=300, until=tmp_path / "go"))
    lost = only(on_ray, "dies", action="die")
    assert lost.lost
    assert "Ray lost the job (WorkerCrashedError" in str(lost.error)
    assert only(on_ray, value=2) == Outcome(2)
    (tmp_path / "go").touch()
    assert on_ray.wait()[0][1] == Outcome(1)
    printed, errors = capfd.readouterr()
    assert [line for line in printed.splitlines() if "(raylet)" not in line] == []
    assert errors == ""


@pytest.mark.all
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_of_ray_survives_its_study(tmp_path: Path, number: int) -> None:
    """After Ctrl-C and SIGTERM the jobs have closed their runs; after kill -9 they are gone too."""
    process = study(tmp_path, "ray")
    family = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    assert started(tmp_path) <= family
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert len(err.splitlines()) == (0 if number == signal.SIGKILL else 1), err
    assert ends(tmp_path) == ([] if number == signal.SIGKILL else ["KeyboardInterrupt"] * 2)
    # After kill -9, two of Ray's own processes take a minute.
    eventually(lambda: not alive(started(tmp_path) if number == signal.SIGKILL else family))
    for left in alive(family):
        psutil.Process(left).kill()
