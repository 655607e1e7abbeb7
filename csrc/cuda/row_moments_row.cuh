// One row of row_moments on the device: its elements, its norm, and the quantities it adds.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/row_moments_view.hpp"
#include "common/rows_view.hpp"

namespace aniso::cuda::moments {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 16;  // 512 threads x 128 registers fill the register file of one SM
constexpr int kTally = 9;      // Σ‖x‖, Σ‖x‖², Σ‖x‖⁴, min, max, four counts
constexpr int kNarrowColumns = 8 * kWarp * kMaxWarps;  // 4096: all four sums in registers
constexpr int kWideColumns = 2 * kNarrowColumns;   // 8192: both sums of squares in shared memory
constexpr double kUp = 0x1p600, kDown = 0x1p-600;  // squares of any float64 row stay normal in one

enum Status : int { kKept, kZero, kNonFinite, kMasked, kAbsent };

struct RowNote {
  double inverse;  ///< 1/(‖x‖·scale), 0 without a direction
  double scale;    ///< power of two that brings a float64 row into range
  double norm;
  int status;
};

struct Job {
  RowsView rows;
  MaskView mask;
  RowNote* notes;    ///< [n], only where x is read twice
  double* partials;  ///< [blocks · teams, 5 d + kTally]
  int team_warps, teams;
  int64_t tile;  ///< columns per block
};

template <DType kType>
struct Element;
template <>
struct Element<DType::f64> {
  using Bits = uint64_t;
  using Real = double;
  static __device__ Real value(Bits bits) { return __longlong_as_double(bits); }
};
template <>
struct Element<DType::f32> {
  using Bits = uint32_t;
  using Real = float;
  static __device__ Real value(Bits bits) { return __uint_as_float(bits); }
};
template <>
struct Element<DType::f16> {
  using Bits = uint16_t;
  using Real = float;
  static __device__ Real value(Bits bits) { return __half2float(__ushort_as_half(bits)); }
};
template <>
struct Element<DType::bf16> {
  using Bits = uint16_t;
  using Real = float;
  static __device__ Real value(Bits bits) { return __uint_as_float(uint32_t{bits} << 16); }
};

template <DType kDType, bool kVector, bool kWideRow>
struct Shape : Element<kDType> {
  using typename Element<kDType>::Bits;
  using Raw = std::conditional_t<kVector, uint4, Bits>;
  using Peak = std::conditional_t<kVector, uint4, decltype(Bits{} + 0u)>;  // no 16-bit registers
  static constexpr bool kWide = kWideRow;
  static constexpr int kBytes = sizeof(Bits);
  static constexpr int kVec = sizeof(Raw) / kBytes;
  static constexpr int kCols = kWide ? 16 : 8;
  static constexpr int kVecs = kCols / kVec;
  // 32 KiB per step in a full block; single wide rows of unaligned elements, to save registers.
  static constexpr int kRows = kWide && !kVector ? 1 : (kWide ? 4 : 8) / kBytes;
  static constexpr int kStages = kWide ? 3 : 4;
  static constexpr int kHome = kWide ? 2 : 4;          // sums per column held in registers
  static constexpr int kScales = kBytes == 8 ? 3 : 1;  // squares of narrower types fit float64
  static constexpr int kLanesPerRow = kWarp / kRows;
};

/// What the warps of one row tell each other; two steps alternate.
template <class S>
struct BlockSpace {
  alignas(16) double exchange[2][S::kScales][S::kRows][kMaxWarps];
};

/// Shared memory of one warp. A thread touches only its own lane of ring and squares.
template <class S>
struct WarpSpace {
  typename S::Raw ring[S::kStages][S::kRows][S::kVecs][kWarp];
  double squares[S::kWide ? 2 * S::kCols : 1][kWarp];
  double tally[S::kRows][kTally];
};

template <class S>
constexpr int64_t shared_bytes(int warps) {
  return sizeof(BlockSpace<S>) + warps * sizeof(WarpSpace<S>);
}

template <class Bits>
__device__ Bits pick(const uint4& raw, int e) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  if constexpr (sizeof(Bits) == 8) return uint64_t{words[2 * e + 1]} << 32 | words[2 * e];
  if constexpr (sizeof(Bits) == 4) return words[e];
  return static_cast<Bits>(words[e / 2] >> (e % 2 * 16));
}
template <class Bits, class Scalar>
__device__ Bits pick(const Scalar& raw, int) {
  return static_cast<Bits>(raw);
}

/// Largest magnitude per element: without the sign bit, floats are ordered as their bits are.
template <int kBytes>
__device__ uint32_t larger(uint32_t a, uint32_t b) {
  if constexpr (kBytes == 2) return __vmaxu2(a, b & 0x7fff7fffu);
  return max(a, b & 0x7fffffffu);
}
template <class S>
__device__ void raise(uint4& peak, const uint4& raw) {
  if constexpr (S::kBytes == 8) {
    if (pick<uint64_t>(raw, 0) << 1 > pick<uint64_t>(peak, 0) << 1) peak.x = raw.x, peak.y = raw.y;
    if (pick<uint64_t>(raw, 1) << 1 > pick<uint64_t>(peak, 1) << 1) peak.z = raw.z, peak.w = raw.w;
  } else {
    peak.x = larger<S::kBytes>(peak.x, raw.x), peak.y = larger<S::kBytes>(peak.y, raw.y);
    peak.z = larger<S::kBytes>(peak.z, raw.z), peak.w = larger<S::kBytes>(peak.w, raw.w);
  }
}
template <class S>
__device__ void raise(typename S::Peak& peak, const typename S::Bits& raw) {
  constexpr auto kMagnitude = static_cast<typename S::Bits>(~uint64_t{0}) >> 1;
  peak = max(peak, typename S::Peak{raw} & kMagnitude);
}

inline __device__ double warp_sum(double value, int lanes) {
  for (int width = lanes / 2; width > 0; width /= 2) {
    value += __shfl_xor_sync(~0u, value, width);
  }
  return value;
}

/// Totals of kRows values over a warp: lane l returns that of row l / (32 / kRows).
template <int kRows>
__device__ double transpose_sum(double (&values)[kRows], int lane) {
#pragma unroll
  for (int live = kRows / 2, width = kWarp / 2; live > 0; live /= 2, width /= 2) {
    const bool upper = lane & width;
#pragma unroll
    for (int i = 0; i < live; ++i) {
      const double sent = upper ? values[i] : values[i + live];
      values[i] = (upper ? values[i + live] : values[i]) + __shfl_xor_sync(~0u, sent, width);
    }
  }
  return warp_sum(values[0], kWarp / kRows);
}

/// Adds x² to the sums of squares, for float64 at three scales.
template <class S>
__device__ void add_squares(double (&squares)[S::kScales], double x) {
  squares[0] = fma(x, x, squares[0]);
  if constexpr (S::kScales == 3) {
    squares[1] = fma(x * kUp, x * kUp, squares[1]);
    squares[2] = fma(x * kDown, x * kDown, squares[2]);
  }
}

/// 1/√x to 1 ulp for x in [1e-290, 1e290]; the slow path of rsqrt() would cost registers.
inline __device__ double inverse_root(double x) {
  double y;
  asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  const double error = fma(-x * y, y, 1.0);
  return fma(y * error, fma(0.375, error, 0.5), y);
}

/// Norm and direction of one row from its sum of squares (float64: at three scales).
template <int kScales>
__device__ RowNote describe(int status, const double (&squares)[kScales]) {
  double square = squares[0], scale = 1.0, unscale = 1.0;
  if constexpr (kScales == 3) {
    if (squares[0] < 1e-280) {
      square = squares[1], scale = kUp, unscale = kDown;
    } else if (!(squares[0] <= 1e290)) {
      square = squares[2], scale = kDown, unscale = kUp;
    }
  }
  if (status == kKept && !(square < HUGE_VAL)) status = kNonFinite;
  if (status == kKept && square == 0.0) status = kZero;
  const double inverse = status == kKept ? inverse_root(square) : 0.0;
  const double norm = status == kKept ? square * inverse * unscale : 0.0;
  return {inverse, scale, norm, status};
}

inline __device__ int peek_status(const Job& job, int64_t row) {
  if (row >= job.rows.n) return kAbsent;
  return job.mask.data && !job.mask.data[row * job.mask.stride] ? kMasked : kKept;
}

/// This thread's part of the squares of one row, read from global memory.
template <class S>
__device__ void square_row(const RowsView& rows, int64_t row, double (&squares)[S::kScales]) {
  const auto* from = static_cast<const typename S::Bits*>(rows.data) + row * rows.row_stride;
#pragma unroll 4
  for (int64_t k = int64_t{threadIdx.x} * S::kVec; k < rows.d; k += int64_t{blockDim.x} * S::kVec) {
    const auto raw = *reinterpret_cast<const typename S::Raw*>(from + k);
#pragma unroll
    for (int e = 0; e < S::kVec; ++e) {
      add_squares<S>(squares, S::value(pick<typename S::Bits>(raw, e)));
    }
  }
}

/// The fold of quantity j of a partial row: a sum, except max|x_k|, min ‖x‖ and max ‖x‖.
inline __device__ double combine(int64_t j, int64_t d, double a, double b) {
  if (j == 5 * d + 3) return fmin(a, b);
  return (j >= 4 * d && j < 5 * d) || j == 5 * d + 4 ? fmax(a, b) : a + b;
}
inline __device__ double neutral(int64_t j, int64_t d) { return j == 5 * d + 3 ? HUGE_VAL : 0.0; }

/// Adds quantity j of a partial row to the caller's accumulators.
inline __device__ void deposit(int64_t j, int64_t d, double value, const RowMomentsView& out) {
  const int64_t t = j - 5 * d;
  if (j < 4 * d) {
    out.sums[j] += value;
  } else if (t < 0) {
    out.abs_max[j - 4 * d] = fmax(out.abs_max[j - 4 * d], value);
  } else if (t < 3) {
    out.norm_sums[t] += value;
  } else if (t < 5) {
    out.norm_range[t - 3] = combine(j, d, out.norm_range[t - 3], value);
  } else {
    out.counts[t - 5] += static_cast<int64_t>(value);  // whole and below 2^53
  }
}

}  // namespace aniso::cuda::moments
