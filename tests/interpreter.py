"""Triton kernels run by Triton's interpreter, which must be chosen before they are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

HEAD = """
import sys
import numpy, torch
numpy.seterr(all="ignore")
torch.set_num_threads(1)
arguments = torch.load(sys.argv[1])
"""
TAIL = """
torch.save(arguments, sys.argv[2])
"""


def interpreted(code, arguments, folder):
    """`arguments` after `code` has changed them in place, in processes with the interpreter on.

    There are as many as processors, up to four: the interpreter uses one, for a minute.
    """
    count = min(4, len(os.sched_getaffinity(0)))
    names = list(arguments)
    shares = [{name: arguments[name] for name in names[i::count]} for i in range(count)]
    running = [start(code, share, folder / str(i)) for i, share in enumerate(shares)]
    results = {}
    for i, process in enumerate(running):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        results |= torch.load(folder / str(i) / "out.pt")
    return {name: results[name] for name in names}


def start(code, arguments, folder):
    """The process of one share."""
    folder.mkdir()
    torch.save(arguments, folder / "in.pt")
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + code + TAIL, "in.pt", "out.pt"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
