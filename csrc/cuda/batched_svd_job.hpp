// What batched_svd's teams share: the matrices of a call, sizes of their memory, entries as read.
#pragma once

#include <algorithm>

#include "common/matrices_view.hpp"
#include "cuda/batched_svd_band.hpp"
#include "cuda/batched_svd_limits.hpp"
#include "cuda/batched_svd_rotation.hpp"

namespace aniso::svd {

using cuda::SvdEffort;

constexpr double kUnit = 0x1p-53;
/// Random signs of the checks.
constexpr int kProbes = 8;
/// All matrices of one call.
struct Job {
  MatricesView x;
  SvdView out;
  int p, q;
  int k;                      ///< vectors per matrix: all where they are refined
  bool refine;                ///< small values, not the first run's to find
  bool rotate, high;          ///< rows until they are orthogonal; from A itself
  double* workspace;          ///< [teams, workspace_doubles]
  int64_t workspace_doubles;  ///< per team
  double gram_error;          ///< ‖error‖_F of a Gram matrix and of its eigenvalues, over ‖A‖_F²
};

/// Rounding errors of a sum of length n grow as √n with a probability beyond doubt (Higham & Mary
/// 2019).
inline double gram_error(int64_t p, int64_t q) {
  return kUnit *
         (8.0 * std::sqrt(static_cast<double>(q)) + 24.0 * std::sqrt(static_cast<double>(p)));
}

inline int64_t vector_doubles(int64_t p, int64_t q, int64_t k) {
  const int64_t products = k * q > 2 * p * k ? k * q : 2 * p * k;
  return 2 * p * k + products + p * kGroup + kProbes * (q + 3 * p);
}

/// What the refinement adds: room for one product, vectors of the tail, and what is kept of rows.
inline int64_t tail_doubles(int64_t p, int64_t q) {
  return (q > 2 * p ? q : 2 * p) * p + p * p + 3 * p;
}

/// All matrices of one call on teams of which none has a workspace yet.
inline Job job_of(const MatricesView& x, const SvdView& out, bool near, SvdEffort effort) {
  const bool rotate = effort == SvdEffort::high || x.dtype == DType::f64;
  const bool refine = effort == SvdEffort::refined, all = refine || rotate;
  const int64_t p = std::min(x.m, x.n), q = std::max(x.m, x.n), k = all ? p : out.k;
  const int64_t width = whole_blocks(static_cast<int>(p));
  const int64_t far = near ? 0 : width * width + band_doubles(static_cast<int>(p));
  const int64_t back = near ? 0 : p * p + joined_doubles(k);
  const bool vectors = out.left != nullptr || all;
  const int64_t total = far + (vectors ? back + vector_doubles(p, q, k) : 0) +
                        (refine   ? tail_doubles(p, q)
                         : rotate ? p * q
                                  : 0);
  return {x,
          out,
          static_cast<int>(p),
          static_cast<int>(q),
          static_cast<int>(k),
          refine,
          rotate,
          effort == SvdEffort::high,
          nullptr,
          total + total % 2,
          gram_error(p, q)};
}

/// Doubles of the spectrum's vectors; what follows them starts at 16 bytes.
ANISO_ANYWHERE inline int spectrum_doubles(int p) { return 5 * p + p % 2; }

/// Doubles of the team's own memory, beside its exchange.
inline int64_t own_doubles(int most, int p, int warps, bool near, bool rotate) {
  int64_t rest = near ? kStage + int64_t{p} * p : kStage;
  if (rotate) rest = std::max(rest, kStage + rotation_doubles(p));
  if (!near) rest = std::max({rest, panel_doubles(most, p), chase_doubles(p, warps)});
  return spectrum_doubles(p) + rest;
}

ANISO_PHASE float of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

/// A half-precision number from its bits; 2^112 takes an exponent from one format to the other.
ANISO_PHASE float of_half(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16, rest = uint32_t{bits & 0x7fffu} << 13;
  const bool finite = (bits & 0x7c00u) != 0x7c00u;
  return finite ? of_bits(sign | rest) * 0x1p112f : of_bits(sign | rest | 0x7f800000u);
}

ANISO_PHASE int bytes_of(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

/// The matrix at hand.
struct Entries {
  const char* data;
  DType dtype;
  int64_t outer, inner;  ///< strides of rows of A, and along them

  /// Not of float64.
  ANISO_PHASE float operator()(int i, int k) const {
    const int64_t at = i * outer + k * inner;
    switch (dtype) {
      case DType::f32:
        return reinterpret_cast<const float*>(data)[at];
      case DType::f16:
        return of_half(reinterpret_cast<const uint16_t*>(data)[at]);
      case DType::bf16:
        return of_bits(uint32_t{reinterpret_cast<const uint16_t*>(data)[at]} << 16);
      case DType::f64:
        break;
    }
    return 0.0f;
  }

  ANISO_PHASE double exactly(int i, int k) const {
    if (dtype != DType::f64) return (*this)(i, k);
    return reinterpret_cast<const double*>(data)[i * outer + k * inner];
  }
};

/// Rows of A as a factor (i, k).
struct RowsOfA {
  Entries a;
  bool deep;
  ANISO_PHASE float operator()(int i, int k) const { return a(i, k); }
};
/// Columns of A as a factor (j, k).
struct ColumnsOfA {
  Entries a;
  bool deep;
  ANISO_PHASE float operator()(int j, int k) const { return a(k, j); }
};

/// Sign c of probe j: a hash of j, so that every run takes the same.
ANISO_PHASE double probe_sign(int j, int c) { return (scattered(j) >> c & 1) != 0 ? 1.0 : -1.0; }

/// Chosen rows of a matrix in memory as a factor.
struct ChosenRows {
  const double* data;
  int stride;
  const int* order;
  ANISO_PHASE double operator()(int i, int k) const { return data[order[i] * stride + k]; }
};

}  // namespace aniso::svd
