"""The launchers go through Triton's own binding and compilation, for a GPU that is not there."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

CAPABILITY = 90


class Absent:
    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0


def launch(kernel, grid):
    def bind(*arguments, **options):
        compiled = kernel.run(*arguments, grid=grid, warmup=True, **options)
        print(kernel.fn.__name__, int("red.shared" in compiled.asm["ptx"]))

    return bind


driver.set_active(Absent())
JITFunction.__getitem__ = launch
torch.Tensor.is_cuda = property(lambda self: True)
from aniso.triton_kernels import gram, pair_histogram

for module in (gram, pair_histogram):
    module.capability = lambda device: CAPABILITY
    module.multiprocessors = lambda device: 132

for dtype in (torch.bfloat16, torch.float32, torch.float64):
    for n, d in ((1, 1), (900, 768), (900, 768)):
        x = torch.rand(n, d).to(dtype)
        inverse = 1 / x.double().norm(dim=1)
        for weights in (None, inverse):
            gram.gram(x, weights, torch.zeros(d, d, dtype=torch.float64))
        counts = torch.zeros(2050, dtype=torch.int64), torch.zeros(2, dtype=torch.float64)
        pair_histogram.pair_histogram(x, inverse, None, None, -1.0, 1.0, *counts)
        pair_histogram.pair_histogram(x, inverse, x, inverse.float(), -1.0, 0.5, *counts)
"""
KERNELS = {
    "row_planes_kernel", "column_planes_kernel", "column_max_kernel", "gram_kernel",
    "gram64_kernel", "pairs_kernel", "fold_kernel",
}  # fmt: skip


def test_every_launch_compiles_the_first_time_and_again(tmp_path):
    command = [sys.executable, "-c", CODE]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    launched = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in launched} == KERNELS
    assert {shared for name, shared in launched if name == "pairs_kernel"} == {"1"}
