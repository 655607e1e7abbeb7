// What one team writes of one matrix of batched_svd.
#pragma once

#include "cuda/batched_svd_job.hpp"

namespace aniso::svd {

/// Of matrix `index`, divided by 2^exponent before. Each method may be called on an object of its
/// own.
template <class Team>
class Results {
 public:
  ANISO_PHASE Results(const Team& team, const Job& job, int64_t index, int exponent)
      : team_(team), job_(job), out_(job.out), index_(index), exponent_(exponent) {}

  /// Value j, whose square is off by up to square_error, and then by error.
  ANISO_PHASE void write(int j, double sigma, double square_error, double error) const {
    const double square = sigma * sigma;
    const int64_t at = index_ * out_.k + j;
    const double near = square_error > 0.0 ? sqrt(square - square_error) : sigma;
    const double low = square > square_error ? near - error : 0.0;
    const double high = (square_error > 0.0 ? sqrt(square + square_error) : sigma) + error;
    out_.values[at] = scalbn(sigma, exponent_);
    out_.bounds[at] = scalbn(low > 0.0 ? low : 0.0, exponent_);
    out_.bounds[job_.x.b * out_.k + at] = scalbn(high, exponent_);
  }

  ANISO_PHASE void leave_checks() const {
    if (team_.thread() != 0) return;
    out_.checks[index_] = out_.checks[job_.x.b + index_] = nan("");
  }

  /// The last word on a matrix; its memory is free for the next.
  ANISO_PHASE void mark(SvdMethod method) const {
    if (method == SVD_NOT_FINITE) refuse();
    if (team_.thread() == 0) out_.methods[index_] = method;
    team_.sync();
  }

  /// The vectors of k values: rows `order` of left [·, m] and right [·, n]. The sign makes the
  /// largest entry of the right one positive.
  ANISO_PHASE void write_vectors(const double* left, const double* right, const int* order,
                                 double* signs) const {
    const int m = static_cast<int>(job_.x.m), n = static_cast<int>(job_.x.n);
    const int k = static_cast<int>(out_.k);
    for (int j = team_.warp(); j < k; j += Team::kWarps) {
      const double* row = right + int64_t{order[j]} * n;
      const double sign = sign_of(row, n);
      if (team_.lane() == 0) signs[j] = sign;
      for (int i = team_.lane(); i < n; i += team_.lanes()) {
        put_right(int64_t{j} * n + i, sign * row[i]);
      }
    }
    team_.sync();
    for (int64_t at = team_.thread(); at < int64_t{m} * k; at += team_.threads()) {
      const int i = static_cast<int>(at / k), j = static_cast<int>(at % k);
      put_left(at, signs[j] * left[int64_t{order[j]} * m + i]);
    }
  }

 private:
  ANISO_PHASE void refuse() const {
    const int64_t k = out_.k;
    for (int64_t j = team_.thread(); j < k; j += team_.threads()) {
      const int64_t at = index_ * k + j;
      out_.values[at] = out_.bounds[at] = out_.bounds[job_.x.b * k + at] = nan("");
    }
    leave_checks();
    if (out_.left == nullptr) return;
    for (int64_t i = team_.thread(); i < job_.x.m * k; i += team_.threads()) put_left(i, 0.0);
    for (int64_t i = team_.thread(); i < job_.x.n * k; i += team_.threads()) put_right(i, 0.0);
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
    put(out_.left, index_ * job_.x.m * out_.k + at, value);
  }
  ANISO_PHASE void put_right(int64_t at, double value) const {
    put(out_.right, index_ * job_.x.n * out_.k + at, value);
  }
  ANISO_PHASE void put(void* factor, int64_t at, double value) const {
    if (out_.wide) {
      static_cast<double*>(factor)[at] = value;
    } else {
      static_cast<float*>(factor)[at] = static_cast<float>(value);
    }
  }

  const Team team_;
  const Job& job_;
  const SvdView& out_;
  const int64_t index_;
  const int exponent_;
};

}  // namespace aniso::svd
