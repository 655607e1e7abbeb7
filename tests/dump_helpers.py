"""Dumps to analyse, and `python -m aniso` as real processes without a torch import for each."""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save_file

from aniso import Dump, open_dump
from aniso.dumps.safetensors import LAYERS_KEY

# A process that has imported everything and forks for each command line it is given: what runs
# in the child is exactly `python -m aniso`, in a process of its own.
_SERVER = """
import json, os, runpy, sys
import aniso._analyze, aniso.models, aniso.report._html, aniso.report._table, torch._dynamo
from transformers import AutoModel, AutoTokenizer
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        break
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    os._exit(0)
for descriptor, path in enumerate((os.devnull, job["out"], job["err"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), descriptor)
# As torchrun would: processes that know their number and where to meet.
if job["ranks"] > 1:
    pids = []
    for rank in range(job["ranks"] - 1, -1, -1):
        pid = os.fork() if rank else 0
        if pid == 0:
            break
        pids.append(pid)
    with open(f"{job['out']}.{rank}", "w") as file:
        file.write(str(os.getpid()))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(job["port"])}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["ranks"])}
os.chdir(job["cwd"])
if job["checkpoint_seconds"] is not None:
    aniso._fold._CHECKPOINT_SECONDS = job["checkpoint_seconds"]
if job["block_bytes"]:
    aniso.dumps.dump._BLOCK_BYTES = job["block_bytes"]
sys.argv = ["aniso", *job["argv"]]
code = 0
try:
    runpy.run_module("aniso", run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
except BaseException:
    sys.excepthook(*sys.exc_info())
    code = 1
sys.stdout.flush()
if job["ranks"] > 1 and rank == 0:
    code = max([code or 0, *(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids)])
# Tearing down torch takes a second.
os._exit(code or 0)
"""


@dataclass
class Finished:
    """How a command ended; code is minus the signal's number when one killed it."""

    code: int
    out: str
    err: str


@dataclass
class Running:
    pid: int
    _server: subprocess.Popen
    _files: tuple

    def kill(self, number):
        # It may have ended already.
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill_rank(self, rank, number):
        """Sends a signal to one of several ranks, if it runs by now."""
        pid = self._files[0].with_name(f"{self._files[0].name}.{rank}")
        if pid.exists() and pid.read_text():
            with suppress(ProcessLookupError):
                os.kill(int(pid.read_text()), number)

    def wait(self):
        code = int(self._server.stdout.readline())
        return Finished(code, *(file.read_text() for file in self._files))


class Cli:
    """Runs `python -m aniso` in a folder."""

    def __init__(self):
        self._temporary = TemporaryDirectory()
        self.folder, self._count = Path(self._temporary.name), 0
        self._server = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            # One thread: the moments of an interruption are alike on small and large machines.
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self._server.stdout.readline() == "ready\n"

    def start(self, *argv, cwd, block_bytes=None, ranks=1, checkpoint_seconds=None):
        self._count += 1
        files = self.folder / f"{self._count}.out", self.folder / f"{self._count}.err"
        job = {"argv": [str(a) for a in argv], "cwd": str(cwd), "block_bytes": block_bytes}
        job |= {"out": str(files[0]), "err": str(files[1])}
        job |= {"checkpoint_seconds": checkpoint_seconds}
        job |= {"ranks": ranks, "port": free_port() if ranks > 1 else 0}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return Running(int(self._server.stdout.readline()), self._server, files)

    def run(self, *argv, cwd, **options):
        return self.start(*argv, cwd=cwd, **options).wait()

    def close(self):
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()
        self._temporary.cleanup()


@cache
def shared_cli():
    """One for all tests: its start takes seconds."""
    cli = Cli()
    atexit.register(cli.close)
    return cli


class Watched(Dump):
    """A dump that notes which blocks are read, and interrupts its reader once.

    Rows read one by one are the sample of the distribution.
    """

    def __init__(self, path, interrupt_at=None):
        whole = open_dump(path)
        parts = [p for layer in whole.layers for p in whole[layer].parts]
        self.reads = []
        super().__init__(whole.path, [replace(p, read=self._watch(p)) for p in parts])
        self._interrupt_at = interrupt_at

    def _watch(self, part):
        def read(start, stop, scratch=None):
            if stop - start > 1:
                self.reads.append((part.layer, start, stop))
            if len(self.reads) == self._interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)
            return part.read(start, stop, scratch)

        return read


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def rows(n=40, dim=6, seed=0, dtype=torch.float32):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


def write_npy(path, array):
    np.save(path, array.numpy() if isinstance(array, torch.Tensor) else array)
    return path


def write_shard(path, tensors, layers=None):
    """A safetensors file; with `layers` it states their order."""
    metadata = None if layers is None else {LAYERS_KEY: json.dumps(layers)}
    save_file(tensors, path, metadata)
    return path


def read_all(layer, **options):
    """All rows of a DumpLayer, and the blocks they came in."""
    blocks = list(layer.blocks(**options))
    return torch.cat([block.rows for block in blocks]), blocks


def metrics_of(report, layer):
    return report.layers[layer].metrics


def file_names(folder):
    return sorted(path.name for path in folder.iterdir())


def strict_json(text):
    """Parses JSON as other languages do: NaN and Infinity are errors."""

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)
