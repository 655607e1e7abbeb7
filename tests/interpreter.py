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
    """`arguments` after `code` has changed them in place, in a process with the interpreter on."""
    torch.save(arguments, folder / "in.pt")
    command = [sys.executable, "-c", HEAD + code + TAIL, str(folder / "in.pt")]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [*command, str(folder / "out.pt")],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "out.pt")
