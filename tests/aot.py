"""Kernels compiled ahead of time for GPUs that are not here, and what their machine code shows."""

from __future__ import annotations

import re
import subprocess

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes per block, opt-in
PLAIN_SHARED_LIMIT = 48 * 1024  # what a block may have without being asked for
_MULTIPLES_OF_16 = ("D", "stride_x", "width")  # integers that aligned rows have


def compiled(case, capability, aligned=True):
    """The kernel for one GPU; aligned as with PyTorch's own allocations, or with no promise."""
    promised = [
        i
        for i, (name, kind) in enumerate(case.signature.items())
        if aligned and (kind.startswith("*") or name in _MULTIPLES_OF_16)
    ]
    attrs = {(i,): [["tt.divisibility", 16]] for i in promised}
    source = ASTSource(case.kernel, case.signature, case.constants, attrs)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=case.options)


def _cuobjdump(kernel, folder, option):
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, option, str(cubin)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def resources(kernel, folder):
    """(local memory: spilled registers and indexed arrays, shared memory besides Triton's own)."""
    usage = _cuobjdump(kernel, folder, "--dump-resource-usage")
    stack, shared, local = re.search(r"STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage).groups()
    return int(stack) + int(local), int(shared)


def serialized(kernel, folder):
    """Whether ptxas made every wgmma wait for the one before, as it does to save unsafe code."""
    code = _cuobjdump(kernel, folder, "-sass")
    return code.count("WARPGROUP.DEPBAR.LE gsb0, 0x0") >= code.count("HGMMA")
