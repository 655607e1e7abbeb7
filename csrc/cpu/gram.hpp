// Second moments of rows, G = Σxxᵀ and Ĝ = Σx̂x̂ᵀ, by exact products of 8-bit digits.
//
// Every column of a block of rows is brought to fixed point by a power of two and cut into S digits
// of 8 bits. Products of digits are added exactly in int32 by the matrix unit (AMX); what remains
// is the rounding to S·8 − 1 bits of a column's largest value: S = 5 for float32 (39 bits: G to
// some 1e-12), S = 3 for half precision (23 bits). Products of digits beyond the last are left
// out. Rows of bfloat16 are multiplied as they are where that is as good (see gram_bf16.hpp).
// Method: Ootomo, Ozaki, Yokota, "DGEMM on integer matrix multiplication unit" (2024).
#pragma once

#include "common/rows_view.hpp"
#include "cpu/isa.hpp"

namespace aniso::cpu {

/// With the rows taken about pilot [2, d] (of x, of x̂; float32 values), adds Σxxᵀ to `raw` and Σx̂x̂ᵀ
/// to `unit` ([d, d], either may be null), on up to `threads` threads.
/// For each of them, also the column sums of the rows as multiplied to totals [2, d], and the
/// expected ‖Δ‖_F² of their rounding Δ to noise [2].
/// Rows of float32, float16 or bfloat16; masked and non-finite rows are left out. Needs has_amx().
void gram(const RowsView& rows, const MaskView& mask, const double* pilot, double* raw,
          double* unit, double* totals, double* noise, int threads);

/// The same in float64 vectors, of rows of any dtype; what it rounds away is not worth a note.
void gram_vector(const RowsView& rows, const MaskView& mask, const double* pilot, double* raw,
                 double* unit, double* totals, int threads, Isa isa);

}  // namespace aniso::cpu
