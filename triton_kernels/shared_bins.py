"""Bins of a program in shared memory, counted by inline PTX; or in global memory.

Triton has no atomics in shared memory. `red.shared.add.u32` of 1 becomes ATOMS.POPC.INC, which
counts the lanes of a warp that hit one bin in one go. What the PTX relies on, and the tests of the
compiled kernels check: the array comes before Triton's own shared memory, which has to stay aligned
to 1024 bytes, so that its size is a multiple of them; and no two threads hold the same element of a
tensor of codes.
"""

# Functions under @triton.jit are Triton's language, without Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

SHARED_BINS = 8192
"""The most bins that shared memory holds beside the tiles of a kernel."""

WORDS: tl.constexpr = tl.constexpr(8448)
DECLARE: tl.constexpr = tl.constexpr(
    ".shared .align 1024 .b8 aniso_bins[33792];\nmov.u32 $0, aniso_bins;"
)
CLEAR: tl.constexpr = tl.constexpr("{ st.shared.u32 [$1], 0; mov.u32 $0, 0; }")
COUNT: tl.constexpr = tl.constexpr("{ red.shared.add.u32 [$1], 1; mov.u32 $0, 0; }")
READ: tl.constexpr = tl.constexpr("ld.shared.u32 $0, [$1];")


@triton.jit
def open_bins(SHARED: tl.constexpr, THREADS: tl.constexpr):
    """Address of the program's bins in shared memory, cleared; once per kernel."""
    base = 0
    if SHARED:
        base = tl.inline_asm_elementwise(DECLARE, "=r", [], tl.int32, is_pure=False, pack=1)
        for i_word in tl.range(0, WORDS, THREADS):
            o_word = base + 4 * (i_word + tl.arange(0, THREADS))
            tl.inline_asm_elementwise(CLEAR, "=r,r", [o_word], tl.int32, is_pure=False, pack=1)
        tl.debug_barrier()
    return base


@triton.jit
def count(base, p_bins, b_code, SHARED: tl.constexpr):
    """One more in the bin of every code."""
    if SHARED:
        o_word = base + 4 * b_code
        tl.inline_asm_elementwise(COUNT, "=r,r", [o_word], tl.int32, is_pure=False, pack=1)
    else:
        tl.atomic_add(p_bins + b_code, 1, sem="relaxed")


@triton.jit
def count_codes(base, p_bins, p_codes, SHARED: tl.constexpr, CHUNK: tl.constexpr):
    """Counts CHUNK codes from memory: at least one per thread, because copies would count too."""
    b_code = tl.load(p_codes + tl.arange(0, CHUNK)).to(tl.int32)
    if p_codes.dtype.element_ty == tl.int16:
        b_code = b_code & 0xFFFF
    count(base, p_bins, b_code, SHARED)


@triton.jit
def close_bins(base, p_bins, BINS, SHARED: tl.constexpr, THREADS: tl.constexpr):
    """Writes the first BINS of the program's bins out of shared memory."""
    if SHARED:
        tl.debug_barrier()
        for i_word in tl.range(0, BINS, THREADS):
            o_bin = i_word + tl.arange(0, THREADS)
            o_word = base + 4 * o_bin
            b_n = tl.inline_asm_elementwise(READ, "=r,r", [o_word], tl.int32, is_pure=False, pack=1)
            tl.store(p_bins + o_bin, b_n, mask=o_bin < BINS)
