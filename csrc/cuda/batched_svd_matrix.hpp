// One matrix of batched_svd by one team, its short side as rows: A = p × q, p <= q. Eigenvalues of
// the rows' Gram matrix and, where vectors are asked, its eigenvectors Z; the rows of B = Z A are
// then σᵢ vᵢ. Matrices that this leaves in doubt (small values, values that are not told apart) are
// marked SVD_FAILED: the caller takes another solver.
#pragma once

#include <algorithm>

#include "common/matrices_view.hpp"
#include "cuda/batched_svd_band.hpp"

namespace aniso::svd {

constexpr double kUnit = 0x1p-53;
/// Values below this share of the largest are left to the caller: the Gram matrix leaves them
/// 1e-10 or more of the largest in doubt.
constexpr double kRefineBelow = 4e-6;
/// Rows of B shorter than this share of ‖A‖_F are what rounding left.
constexpr double kNoise = 1e-15;
constexpr int kProbes = 8;

/// All matrices of one call.
struct Job {
  MatricesView x;
  SvdView out;
  int p, q, k;
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

/// Doubles of workspace per team, an even number.
inline int64_t workspace_doubles(int p, int64_t q, int64_t k, bool vectors, bool near) {
  const int64_t width = whole_blocks(p);
  const int64_t far = near ? 0 : width * width + band_doubles(p);
  const int64_t back = near ? 0 : int64_t{p} * p + joined_doubles(k);
  const int64_t total = far + (vectors ? back + vector_doubles(p, q, k) : 0);
  return total + total % 2;
}

/// Doubles of the spectrum's vectors; what follows them starts at 16 bytes.
ANISO_ANYWHERE inline int spectrum_doubles(int p) { return 5 * p + p % 2; }

/// Doubles of the team's own memory, beside its exchange.
inline int64_t own_doubles(int most, int p, int warps, bool near) {
  int64_t rest = near ? kStage + int64_t{p} * p : kStage;
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

/// The matrix at hand, not of float64.
struct Entries {
  const char* data;
  DType dtype;
  int64_t outer, inner;  ///< strides of rows of A, and along them

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
ANISO_PHASE double probe_sign(int j, int c) {
  uint64_t state = static_cast<uint64_t>(j) * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u;
  state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
  state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
  state ^= state >> 31;
  return (state >> c & 1) != 0 ? 1.0 : -1.0;
}

/// Factorises matrices of orders up to kMost with one team; every method is called by all of it.
/// kNear: the Gram matrix lies with the stage, not in the workspace, and is reduced in one stage.
template <int kMost, bool kNear, class Team>
class Factorization {
 public:
  /// The team's memory has own_doubles(kMost, p, kWarps, kNear); slot: which workspace.
  ANISO_PHASE Factorization(const Team& team, const Job& job, int64_t slot)
      : team_(team),
        job_(job),
        p_(job.p),
        q_(job.q),
        k_(job.k),
        wide_(job.x.m <= job.x.n),
        far_(job.workspace + slot * job.workspace_doubles) {}

  ANISO_PHASE void run(int64_t index) {
    index_ = index;
    const int64_t size = job_.x.dtype == DType::f32 ? 4 : 2;
    a_ = {static_cast<const char*>(job_.x.data) + index * job_.x.batch_stride * size, job_.x.dtype,
          wide_ ? job_.x.row_stride : job_.x.column_stride,
          wide_ ? job_.x.column_stride : job_.x.row_stride};
    if (!accumulate()) return mark(SVD_NOT_FINITE);
    reduce();
    spread_ = split(team_, spectrum());
    Bisection<Team>(team_, spectrum()).run(k_);
    const bool vectors = job_.out.left != nullptr;
    if (spectrum().values()[k_ - 1] < kRefineBelow * kRefineBelow * spectrum().values()[0])
      return mark(SVD_FAILED);
    if (!vectors) return write_values();
    if (!(spectrum().values()[0] > 0.0) || !find_vectors()) return mark(SVD_FAILED);
    measure();
    check();
    write_vectors();
    mark(SVD_GRAM);
  }

 private:
  /// Found again by every phase: that its memory is the team's must be plain to the compiler.
  ANISO_PHASE Spectrum spectrum() const {
    double* stage = team_.memory() + spectrum_doubles(p_);
    return {p_, kNear ? stage + kStage : far_, team_.memory(), stage};
  }

  // ---- the Gram matrix ----

  /// Rows of the Gram matrix as stored.
  ANISO_PHASE int width() const { return kNear ? p_ : whole_blocks(p_); }

  ANISO_PHASE void reduce() {
    if constexpr (kNear) {
      reduce_at_once();
    } else {
      reduce_to_band();
      chase_bulges();
    }
  }
  ANISO_APART void reduce_at_once() { Reduction<Team>(team_, spectrum()).run(); }
  ANISO_APART void reduce_to_band() { BandReduction<kMost, Team>(team_, spectrum(), band()).run(); }
  ANISO_APART void chase_bulges() {
    double* kept = job_.out.left != nullptr ? chased() : nullptr;
    BulgeChase<Team>(team_, spectrum(), band(), kept).run();
  }

  /// A Aᵀ brought to a trace of about 1 by a power of two; false where it is not finite. Products
  /// of single precision neither overflow nor vanish in float64.
  ANISO_APART bool accumulate() {
    const RowsOfA rows{a_, a_.inner == 1};
    double* gram = spectrum().gram;
    const int n = p_, stride = width();
    for (int e = team_.thread(); stride > n && e < stride * stride; e += team_.threads()) {
      if (e / stride >= n || e % stride >= n) gram[e] = 0.0;
    }
    multiply(team_, spectrum().stage, {n, n, q_}, true, rows, rows,
             [=](int i, int j, double value) {
               if (i >= j) gram[i * stride + j] = gram[j * stride + i] = value;
             });
    double trace = 0.0;
    for (int i = team_.thread(); i < n; i += team_.threads()) trace += gram[i * stride + i];
    trace = team_.sum(trace);
    if (!(trace <= DBL_MAX)) return false;
    exponent_ = trace > 0.0 ? (ilogb(trace) + 2) >> 1 : 0;
    norm_ = sqrt(scalbn(trace, -2 * exponent_));
    const double down = scalbn(1.0, -2 * exponent_);
    for (int i = team_.thread(); i < stride * stride; i += team_.threads()) gram[i] *= down;
    team_.sync();
    return true;
  }

  // ---- vectors ----

  /// Z, and B = Z A in the scale of the Gram matrix; false where vectors are not
  /// told apart.
  ANISO_APART bool find_vectors() {
    const int n = p_, q = q_;
    twist(team_, spectrum(), k_, spread_, columns(), b(), b() + int64_t{n} * k_);
    if (!Separation<Team>(team_, spectrum(), k_, columns(), separated()).run(spread_)) return false;
    turn_back_vectors();
    const double down = scalbn(1.0, -exponent_);
    double* out = b();
    multiply(team_, spectrum().stage, {k_, q, n}, false, RowsOf{z(), n},
             ColumnsOfA{a_, a_.inner != 1},
             [=](int j, int c, double value) { out[int64_t{j} * q + c] = value * down; });
    return true;
  }

  ANISO_APART void turn_back_vectors() {
    if constexpr (kNear) {
      turn_back<kMost>(team_, spectrum(), k_, columns(), z());
    } else {
      turn_back_bulges(team_, p_, k_, chased(), columns());
      for (int64_t at = team_.thread(); at < int64_t{p_} * k_; at += team_.threads()) {
        const int i = static_cast<int>(at / k_), j = static_cast<int>(at % k_);
        z()[j * p_ + i] = columns()[at];
      }
      team_.sync();
      turn_back_panels(team_, spectrum(), k_, z(), joined());
    }
  }

  // The workspace: addresses are cheaper to find again than to keep in registers.

  /// The Gram matrix where it is not near, then the band.
  ANISO_PHASE double* band() const { return far_ + width() * width(); }
  /// Vectors of T, [p, k].
  ANISO_PHASE double* columns() const {
    return kNear ? far_ : band() + width() * (kColumn + kBand);
  }
  /// Z, [k, p].
  ANISO_PHASE double* z() const { return columns() + p_ * k_; }
  /// B, [k, q]; before it is there, two matrices [p, k].
  ANISO_PHASE double* b() const { return z() + p_ * k_; }
  /// [p, kGroup]
  ANISO_PHASE double* separated() const { return b() + k_ * (q_ > 2 * p_ ? q_ : 2 * p_); }
  /// [kProbes, q], [kProbes, p], [kProbes, p]
  ANISO_PHASE double* along() const { return separated() + p_ * kGroup; }
  ANISO_PHASE double* across() const { return along() + kProbes * q_; }
  ANISO_PHASE double* images() const { return across() + kProbes * p_; }
  /// Reflectors of the second stage, [p, p], and room for those of the first.
  ANISO_PHASE double* chased() const { return images() + kProbes * p_; }
  ANISO_PHASE double* joined() const { return chased() + int64_t{p_} * p_; }

  // The stage, from here on: norms, their descending order, and the signs of vectors.
  ANISO_PHASE double* norms() const { return spectrum().stage; }
  ANISO_PHASE double* signs() const { return spectrum().stage + k_; }
  ANISO_PHASE int* order() const { return reinterpret_cast<int*>(spectrum().stage + 2 * k_); }

  ANISO_PHASE const double* b_row(int j) const { return b() + int64_t{j} * q_; }
  ANISO_PHASE const double* z_row(int j) const { return z() + int64_t{j} * p_; }

  /// Norms of B's rows, which are the singular values; their order; bounds; B's rows to length 1.
  ANISO_PHASE void measure() {
    for (int j = team_.warp(); j < k_; j += Team::kWarps) {
      double square = 0.0;
      for (int c = team_.lane(); c < q_; c += team_.lanes()) square += b_row(j)[c] * b_row(j)[c];
      square = team_.warp_sum(square);
      const double norm = sqrt(square), inverse = norm > 0.0 ? 1.0 / norm : 0.0;
      for (int c = team_.lane(); c < q_; c += team_.lanes()) b()[int64_t{j} * q_ + c] *= inverse;
      if (team_.lane() == 0) norms()[j] = norm;
    }
    team_.sync();
    for (int j = team_.thread(); j < k_; j += team_.threads()) {
      int rank = 0;
      for (int i = 0; i < k_; ++i) {
        rank += norms()[i] > norms()[j] || (norms()[i] == norms()[j] && i < j);
      }
      order()[rank] = j;
      write(rank, norms()[j]);
    }
    team_.sync();
  }

  // ---- checks by random probes: E‖R ω‖² = ‖R‖_F² for ω of random signs (Hutchinson 1990) ----

  ANISO_APART void check() {
    combine(b(), q_, false, along());
    images_of(RowsOf{b(), q_}, k_, q_, along());
    const double defect_long = defect();
    // ω S Z - ω Vᵀ Aᵀ
    combine(z(), p_, true, across());
    images_of(RowsOfA{a_, true}, p_, q_, along());
    const double residual = distance(scalbn(1.0, -exponent_));
    combine(z(), p_, false, across());
    images_of(RowsOf{z(), p_}, k_, p_, across());
    const double defect_short = defect();
    if (team_.thread() != 0) return;
    const double larger = fmax(defect_long, defect_short);
    job_.out.checks[index_] = sqrt(residual / kProbes) / norm_;
    job_.out.checks[job_.x.b + index_] = sqrt(larger / kProbes);
  }

  /// out [kProbes, length] = Σ_j ω_j (σ_j) rows_j.
  ANISO_PHASE void combine(const double* rows, int length, bool weighted, double* out) const {
#pragma unroll 1
    for (int c = team_.thread(); c < length; c += team_.threads()) {
      double sums[kProbes] = {};
#pragma unroll 1
      for (int j = 0; j < k_; ++j) {
        const double entry = rows[int64_t{j} * length + c] * (weighted ? norms()[j] : 1.0);
#pragma unroll
        for (int probe = 0; probe < kProbes; ++probe) sums[probe] += entry * probe_sign(j, probe);
      }
#pragma unroll
      for (int probe = 0; probe < kProbes; ++probe) out[int64_t{probe} * length + c] = sums[probe];
    }
    team_.sync();
  }

  /// images() [kProbes, count] = probes rowsᵀ.
  template <class Rows>
  ANISO_PHASE void images_of(const Rows& rows, int count, int length, const double* probes) const {
#pragma unroll 1
    for (int j = team_.warp(); j < count; j += Team::kWarps) {
      double sums[kProbes] = {};
#pragma unroll 1
      for (int c = team_.lane(); c < length; c += team_.lanes()) {
        const double entry = rows(j, c);
#pragma unroll
        for (int probe = 0; probe < kProbes; ++probe) {
          sums[probe] += entry * probes[int64_t{probe} * length + c];
        }
      }
#pragma unroll
      for (int probe = 0; probe < kProbes; ++probe) {
        const double total = team_.warp_sum(sums[probe]);
        if (team_.lane() == 0) images()[probe * count + j] = total;
      }
    }
    team_.sync();
  }

  /// Σ over probes of ‖images - ω‖².
  ANISO_PHASE double defect() const {
    double total = 0.0;
    for (int i = team_.thread(); i < kProbes * k_; i += team_.threads()) {
      const double rest = images()[i] - probe_sign(i % k_, i / k_);
      total += rest * rest;
    }
    return team_.sum(total);
  }

  /// ‖across - scale · images‖²
  ANISO_PHASE double distance(double scale) const {
    double total = 0.0;
    for (int i = team_.thread(); i < kProbes * p_; i += team_.threads()) {
      const double rest = across()[i] - scale * images()[i];
      total += rest * rest;
    }
    return team_.sum(total);
  }

  // ---- results ----

  ANISO_PHASE void write(int j, double sigma) const {
    const double error = job_.gram_error * norm_ * norm_, square = sigma * sigma;
    const int64_t at = index_ * k_ + j;
    const double low = square > error ? sqrt(square - error) : 0.0;
    job_.out.values[at] = scalbn(sigma, exponent_);
    job_.out.bounds[at] = scalbn(low, exponent_);
    job_.out.bounds[job_.x.b * k_ + at] = scalbn(sqrt(square + error), exponent_);
  }

  ANISO_PHASE void write_values() const {
    for (int j = team_.thread(); j < k_; j += team_.threads()) {
      write(j, sqrt(spectrum().values()[j] > 0.0 ? spectrum().values()[j] : 0.0));
    }
    if (team_.thread() == 0) {
      job_.out.checks[index_] = job_.out.checks[job_.x.b + index_] = nan("");
    }
    mark(SVD_GRAM);
  }

  /// The last word on a matrix; its memory is free for the next.
  ANISO_PHASE void mark(SvdMethod method) const {
    if (method == SVD_NOT_FINITE) refuse();
    if (team_.thread() == 0) job_.out.methods[index_] = method;
    team_.sync();
  }

  ANISO_PHASE void refuse() const {
    const SvdView& out = job_.out;
    for (int j = team_.thread(); j < k_; j += team_.threads()) {
      const int64_t at = index_ * k_ + j;
      out.values[at] = out.bounds[at] = out.bounds[job_.x.b * k_ + at] = nan("");
    }
    if (team_.thread() == 0) out.checks[index_] = out.checks[job_.x.b + index_] = nan("");
    if (out.left == nullptr) return;
    for (int64_t i = team_.thread(); i < job_.x.m * k_; i += team_.threads()) put_left(i, 0.0);
    for (int64_t i = team_.thread(); i < job_.x.n * k_; i += team_.threads()) put_right(i, 0.0);
  }

  /// The vectors as written: the sign makes the largest entry of the right one positive.
  ANISO_PHASE void write_vectors() const {
    const int m = static_cast<int>(job_.x.m), n = static_cast<int>(job_.x.n);
    const double *left = wide_ ? z() : b(), *right = wide_ ? b() : z();
    for (int j = team_.warp(); j < k_; j += Team::kWarps) {
      const double* row = right + int64_t{order()[j]} * n;
      const double sign = sign_of(row, n);
      if (team_.lane() == 0) signs()[j] = sign;
      for (int i = team_.lane(); i < n; i += team_.lanes()) {
        put_right(int64_t{j} * n + i, sign * row[i]);
      }
    }
    team_.sync();
    for (int64_t at = team_.thread(); at < int64_t{m} * k_; at += team_.threads()) {
      const int i = static_cast<int>(at / k_), j = static_cast<int>(at % k_);
      put_left(at, signs()[j] * left[int64_t{order()[j]} * m + i]);
    }
  }

  /// The sign of a row's entry of largest magnitude, plus where both signs reach it.
  ANISO_PHASE double sign_of(const double* row, int n) const {
    double most = 0.0, least = 0.0;
    for (int i = team_.lane(); i < n; i += team_.lanes()) {
      most = fmax(most, row[i]);
      least = fmin(least, row[i]);
    }
    return team_.warp_max(-least) > team_.warp_max(most) ? -1.0 : 1.0;
  }

  ANISO_PHASE void put_left(int64_t at, double value) const {
    static_cast<float*>(job_.out.left)[index_ * job_.x.m * k_ + at] = static_cast<float>(value);
  }
  ANISO_PHASE void put_right(int64_t at, double value) const {
    static_cast<float*>(job_.out.right)[index_ * job_.x.n * k_ + at] = static_cast<float>(value);
  }

  const Team team_;
  const Job& job_;
  const int p_, q_, k_;
  const bool wide_;
  double* const far_;  // the workspace
  Entries a_{};
  int64_t index_ = 0;
  int exponent_ = 0;
  double norm_ = 0.0, spread_ = 0.0;
};

}  // namespace aniso::svd
