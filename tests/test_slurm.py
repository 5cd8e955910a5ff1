"""Jobs on a real Slurm of one node, which is started for these tests and ended with them.

It needs `slurmctld`, `slurmd` and `munged` (Debian: slurm-wlm, munge), and is private: its own
configuration, key, ports and folders, on the loopback interface.
"""

import dataclasses
import getpass
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import walt_core
import walt_tokenizer
from probe_eval.backbones.walt import WINDOWS
from probe_eval.records import read_record
from probe_eval.sweeps import engines

SIZES = Path(__file__).parent / "minimal_sizes.py"
FOLDERS = ("here", "slurm")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scancel")
PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=2000
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""
JOBS = '''
"""What the jobs run."""

import os
import signal
from pathlib import Path


def run(path: Path) -> None:
    """Does what the file says, once."""
    done = path.with_suffix(".done")
    if done.exists():
        return
    with path.with_suffix(".runs").open("a") as file:
        file.write("run\\n")
    what = path.read_text()
    if what == "fail":
        raise ValueError("this job cannot work")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "wait":
        import time

        for _ in range(300):
            if path.with_name("go").exists():
                break
            time.sleep(0.1)
    done.write_text(f"{what} {os.environ.get('RANK')} {os.environ['SLURM_JOB_ID']}")


def add(path: Path) -> None:
    """Sums 1 and 2 in two processes."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    number = torch.tensor(float(distributed.get_rank() + 1))
    distributed.all_reduce(number)
    host, cpu = os.environ["MASTER_ADDR"], os.environ["ACCELERATE_USE_CPU"]
    text = f"{number.item()} of {distributed.get_world_size()} at {host} {cpu}"
    path.with_suffix(f".{os.environ['RANK']}").write_text(text)
    distributed.destroy_process_group()
'''


def free_ports(count: int) -> list[int]:
    """Numbers of ports that nobody listens on."""
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def wait_until(is_so: Callable[[], Any], seconds: float, what: Callable[[], str]) -> None:
    """Waits for something, and fails after a time."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            pytest.fail(f"not after {seconds} s: {what()}")
        time.sleep(0.1)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    """The folder of a running Slurm, which the commands of this process reach."""
    found = {name: shutil.which(name, path=PLACES) for name in PROGRAMS}
    if lacking := [name for name, path in found.items() if path is None]:
        pytest.skip(f"no Slurm here (apt-get install slurm-wlm munge): {', '.join(lacking)}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # sockets need a short path
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    values = {"host": host, "user": getpass.getuser(), "ports": free_ports(2), "folder": folder}
    conf = folder / "slurm.conf"
    conf.write_text(CONFIGURATION.format(**values))
    munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
    munge |= {"seed-file": "seed"}
    commands = [
        ["munged", "--force", "--foreground"]
        + [f"--{option}={folder}/munge.{suffix}" for option, suffix in munge.items()],
        ["slurmctld", "-D", "-c", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf)],
    ]
    daemons = []
    with pytest.MonkeyPatch.context() as patch, (folder / "out").open("w") as out:
        patch.setenv("SLURM_CONF", str(conf))
        patch.setenv("PATH", PLACES)
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)

        def said() -> str:
            logs = [*folder.glob("*.log"), folder / "out"]
            return "\n".join(path.read_text()[-1500:] for path in logs)

        def is_idle() -> bool:
            command = ["sinfo", "--noheader", "--format=%T"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            return done.stdout.strip() == "idle"

        try:
            for command in commands:
                path = str(found[command[0]])
                daemons.append(subprocess.Popen([path, *command[1:]], stdout=out, stderr=out))
                if command[0] == "munged":
                    wait_until((folder / "munge.socket").exists, 10, said)
            wait_until(is_idle, 20, said)
            yield folder
            subprocess.run(["scancel", f"--user={getpass.getuser()}"], check=False)
            wait_until(lambda: not engines.queued(), 20, said)
        finally:
            for daemon in reversed(daemons):  # nothing of theirs is kept
                daemon.kill()
                daemon.wait()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def jobs(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., list[Path]]]:
    """Function that writes jobs that do what they are told; `slurm_jobs` is importable."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "slurm_jobs.py").write_text(JOBS)
    paths = [str(tmp_path / "code"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setattr(engines, "SECONDS_BETWEEN_LOOKS", 0.1)
    monkeypatch.setattr(engines, "SECONDS_BETWEEN_QUEUES", 0.5)

    def write(*what: str) -> list[Path]:
        found = [tmp_path / f"{number}.json" for number in range(len(what))]
        for path, text in zip(found, what, strict=True):
            path.write_text(text)
        return found

    yield write
    sys.modules.pop("slurm_jobs", None)


def run(paths: list[Path], name: str = "run", **options: str) -> None:
    """Runs jobs on the Slurm of these tests."""
    engines.run_everywhere(
        paths,
        getattr(__import__("slurm_jobs"), name),
        engine="submitit",
        folder=paths[0].parent / "engine",
        options={"timeout_min": "5", **options},
    )


def test_jobs_run_failures_are_named_and_a_rerun_runs_what_lacks(
    jobs: Callable[..., list[Path]], tmp_path: Path
) -> None:
    paths = jobs("work", "fail", "die", "work")
    with pytest.raises(RuntimeError) as caught:
        run(paths, partition="all")
    message = str(caught.value)
    assert message.startswith("2 of 4 jobs failed")
    assert "ValueError: this job cannot work (log: " in message
    assert "ended without a result: killed, or out of time or memory (log: " in message
    for line, path in zip(message.splitlines()[1:], sorted(paths[1:3]), strict=True):
        log = Path(line.rpartition("(log: ")[2].rstrip(")"))
        assert str(path) in message
        assert log.is_file()
    assert "this job cannot work" in "".join(p.read_text() for p in tmp_path.rglob("*_log.err"))
    for path in (paths[0], paths[3]):
        assert path.with_suffix(".done").read_text().startswith("work None ")

    paths[1].write_text("work")
    paths[2].write_text("work")
    run(paths)
    runs = [path.with_suffix(".runs").read_text().count("run") for path in paths]
    assert runs == [1, 2, 2, 1]


def test_two_tasks_of_a_job_are_two_ranks(jobs: Callable[..., list[Path]]) -> None:
    (path,) = jobs("add")
    run([path], "add", tasks_per_node="2", nodes="1")
    for rank in (0, 1):
        assert path.with_suffix(f".{rank}").read_text() == "3.0 of 2 at localhost true"


def test_an_interrupted_command_leaves_its_jobs_and_finds_them_again(
    jobs: Callable[..., list[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    paths = jobs("wait", "wait")
    started = [path.with_suffix(".runs") for path in paths]

    def interrupt() -> None:
        wait_until(lambda: all(path.exists() for path in started), 30, lambda: "jobs started")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with caplog.at_level("INFO", "probe_eval.sweeps.engines"), pytest.raises(KeyboardInterrupt):
        run(paths)
    thread.join()
    (hint,) = [text for text in caplog.messages if "scancel" in text]
    assert hint.rpartition(" ")[2].isdigit()
    assert engines.queued()
    paths[0].with_name("go").touch()
    run(paths)
    assert [path.read_text() for path in started] == ["run\n", "run\n"]
    assert all(path.with_suffix(".done").exists() for path in paths)


def test_what_slurm_refuses_is_said(jobs: Callable[..., list[Path]]) -> None:
    paths = jobs("work")
    with pytest.raises(RuntimeError, match=r"sbatch refused the jobs.*invalid partition"):
        run(paths, partition="nowhere")
    with pytest.raises(ValueError, match=r"does not take.*colour.*known: .*partition"):
        run(paths, colour="red")


@pytest.fixture
def sweep_words(tmp_path: Path) -> Callable[..., list[str]]:
    """Function that makes the command line of a sweep of two jobs of seconds."""
    sizes = runpy.run_path(str(SIZES))
    torch.manual_seed(0)
    tokenizer = walt_tokenizer.VideoTokenizer(sizes["TOKENIZER"])
    tokenizer.save_pretrained(tmp_path / "twins" / "tokenizer")
    walt = walt_core.Walt(dataclasses.replace(sizes["WALT"], windows=WINDOWS["v-walt"]))
    walt.latent_mean.copy_(tokenizer.latent_mean)
    walt.latent_std.copy_(tokenizer.latent_std)
    walt.save_pretrained(tmp_path / "twins" / "v-walt")
    settings = {
        "data.size": 16,
        "data.num_frames": 5,
        "data.limit": 8,
        "data.workers": 0,
        "optim.steps": 4,
        "optim.batch_size": 4,
        "optim.warmup_steps": 1,
        "readout.width": 8,
        "readout.num_heads": 2,
    }

    def words(output: Path, *more: str) -> list[str]:
        return [
            *("sweep", "--tasks", "moving-shapes-action", "--preset", "smoke"),
            *("--backbones", "v-walt", "--pretrained", str(tmp_path / "twins")),
            *("--blocks", "1,2", "--timesteps", "0,200", "--seeds", "0", "--held-out", "0"),
            *("--output", str(output), *more, "--set"),
            *(f"{name}={value}" for name, value in settings.items()),
        ]

    return words


@pytest.mark.usefixtures("jobs")
def test_a_sweep_on_slurm_is_one_that_runs_here(
    main: Callable[..., int], sweep_words: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert main(*sweep_words(tmp_path / "here")) == 0
    options = ["--engine", "submitit", "--engine-options", "partition=all", "timeout_min=5"]
    assert main(*sweep_words(tmp_path / "slurm", *options)) == 0
    cells = [sorted(path.name for path in (tmp_path / f / "cells").iterdir()) for f in FOLDERS]
    assert cells[0] == cells[1]
    assert len(cells[0]) == 4
    for cell in cells[0]:
        here, there = (read_record(tmp_path / f / "cells" / cell / "record.json") for f in FOLDERS)
        for name in ("metric", "metrics", "dataset", "backbone", "final_loss", "readout"):
            assert here[name] == there[name], name
    logs = list((tmp_path / "slurm" / "engine").glob("*_0_log.err"))
    assert len(logs) == 2
