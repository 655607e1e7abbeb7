// One matrix at a time, its kept rows side by side: X = U S Vᵀ, c × n. Products in the dtype of the
// factors, whatever is divided by or differenced in float64. One of UUᵀ, VVᵀ is the identity.
#include "cpu/spectral_map_kernel.hpp"

#include "cpu/dense.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

// Below this relative gap of two singular values their difference loses 12 bits; the trapezoid with
// its correction by g'' errs by gap⁴/720, 5e-18.
constexpr double NEAR = 0x1p-12;
// A smooth g leaves the trapezoid by gap³/12, 1e-12 of its size: more than this is a jump.
constexpr double JUMP = 0x1p-24;

/// Hands out parts of the scratch of one matrix, each on a cache line.
class Space {
 public:
  explicit Space(double* base) : next_(base) {}
  template <class T>
  T* take(int64_t count) {
    T* part = reinterpret_cast<T*>(next_);
    next_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 8;
    return part;
  }

 private:
  double* next_;
};

inline void narrow(float x, f16* to) {
  const _Float16 half = static_cast<_Float16>(x);
  std::memcpy(to, &half, sizeof half);
}
/// To nearest, ties to even.
inline void narrow(float x, bf16* to) {
  const uint32_t bits = load_as<uint32_t>(&x);
  const bool nan = x != x;
  to->bits = static_cast<uint16_t>(nan ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/// n numbers in the dtype of products, and back.
inline void widen_row(const double* from, int64_t step, int64_t n, double* to) {
  for (int64_t j = 0; j < n; ++j) to[j] = from[j * step];
}
template <class E>
inline void widen_row(const E* from, int64_t step, int64_t n, float* to) {
  for (int64_t j = 0; j < n; ++j) to[j] = static_cast<float>(value(from[j * step]));
}
inline void narrow_row(const double* from, int64_t n, double* to) {
  std::memcpy(to, from, static_cast<size_t>(n) * sizeof(double));
}
inline void narrow_row(const float* from, int64_t n, float* to) {
  std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}
template <class E>
inline void narrow_row(const float* from, int64_t n, E* to) {
  for (int64_t j = 0; j < n; ++j) narrow(from[j], to + j);
}

inline f64s absolute(f64s x) { return x < 0.0 ? -x : x; }

/// The first LANES numbers of `v` as T.
inline void store_as(double* to, f64s v) { store(to, v); }
inline void store_as(float* to, f64s v) {
#if defined(__AVX512F__)
  _mm256_storeu_ps(to, _mm512_cvtpd_ps(v));
#else
  for (int lane = 0; lane < LANES; ++lane) to[lane] = static_cast<float>(v[lane]);
#endif
}

/// Positions of the kept rows of matrix `index`; returns how many.
inline int64_t kept_rows(const uint8_t* mask, int64_t index, int64_t m, int64_t* rows) {
  int64_t count = 0;
  for (int64_t i = 0; i < m; ++i) {
    if (mask == nullptr || mask[index * m + i] != 0) rows[count++] = i;
  }
  return count;
}

template <class E>
class SpectralOne {
 public:
  using T = std::conditional_t<sizeof(E) == sizeof(double), double, float>;

  SpectralOne(const SpectralMapView& view, int64_t index, double* scratch)
      : view_(view),
        index_(index),
        n_(view.x.n),
        k_(view.factors.k),
        x_(static_cast<const E*>(view.x.data) + index * view.x.batch_stride),
        out_(static_cast<E*>(view.out) + (view.out == nullptr ? 0 : index * view.x.m * n_)),
        vh_(static_cast<const T*>(view.factors.vh) + index * k_ * n_),
        s_(view.factors.s + index * k_),
        g_(view.values + index * k_),
        space_(scratch),
        rows_(space_.take<int64_t>(view.x.m)),
        panel_(space_.take<T>(PANEL_DEPTH * TILE_WIDTH<T>)) {
    const bool defined = view.defined == nullptr || view.defined[index] != 0;
    count_ = defined ? kept_rows(view.mask, index, view.x.m, rows_) : 0;
    rank_ = count_ < n_ ? count_ : n_;
  }

  void map() {
    if (count_ == 0) return write({});
    T* u = left_factor();
    for (int64_t i = 0; i < count_; ++i) {
      for (int64_t j = 0; j < rank_; ++j) u[i * rank_ + j] *= static_cast<T>(g_[j]);
    }
    const Product out = result();
    add({u, count_, rank_, rank_}, right_factor(), out);
    write(out);
  }

  void backward(const SpectralGradient& gradient) {
    double* dvalues = gradient.values + index_ * k_;
    for (int64_t j = 0; j < k_; ++j) dvalues[j] = 0.0;
    if (count_ == 0) {
      if (view_.out != nullptr) write({});
      return;
    }
    const T* u = left_factor();
    const Operand<T> left{u, count_, rank_, rank_}, right = right_factor();
    const Operand<T> c = incoming();
    const Product p = inner_product(left, right, c);
    for (int64_t j = 0; j < rank_; ++j) dvalues[j] = p.data[j * p.stride + j];
    if (view_.out == nullptr) return;
    const bool wide = count_ <= n_;
    stretch_ = space_.take<double>(rank_);
    for (int64_t j = 0; j < rank_; ++j) {
      stretch_[j] = s_[j] > 0.0 ? g_[j] / s_[j] : gradient.at_zero[index_];
    }
    const Product within = within_of(p, gradient, wide);
    if (gradient.top != nullptr) {
      double slope = 0.0;
      for (int64_t j = 0; j < rank_; ++j) slope += gradient.top[index_ * k_ + j] * dvalues[j];
      within.data[0] += static_cast<T>(slope);
    }
    const Product out = result();
    if (wide) {
      // U W Vᵀ + U D Uᵀ C
      const Product along = stretched_square(left);
      Product turned = zeros(count_, rank_);
      add(left, operand(within), turned);
      add(operand(along), c, out);
      add(operand(turned), right, out);
    } else {
      // U W Vᵀ + C V D Vᵀ
      const Product along = stretched_square(right.transposed());
      Product turned = zeros(rank_, n_);
      add(operand(within), right, turned);
      add(c, operand(along), out);
      add(left, operand(turned), out);
    }
    write(out);
  }

 private:
  /// A matrix by rows, with room for whole tiles.
  struct Product {
    T* data;
    int64_t rows, columns, stride;
  };

  static Operand<T> operand(const Product& m) { return {m.data, m.rows, m.columns, m.stride}; }

  Product room(int64_t rows, int64_t columns) {
    int64_t stride = (columns + TILE_WIDTH<T> - 1) / TILE_WIDTH<T> * TILE_WIDTH<T>;
    // Rows must not all start in one set of the cache.
    if (stride % 128 == 0) stride += 64 / static_cast<int64_t>(sizeof(T));
    return {space_.take<T>(rows * stride), rows, columns, stride};
  }

  Product zeros(int64_t rows, int64_t columns) {
    const Product m = room(rows, columns);
    std::memset(m.data, 0, static_cast<size_t>(rows * m.stride) * sizeof(T));
    return m;
  }

  void add(const Operand<T>& a, const Operand<T>& b, const Product& out) const {
    add_product(a, b, out.data, out.stride, panel_);
  }

  /// The kept rows of U, side by side.
  T* left_factor() {
    const T* u = static_cast<const T*>(view_.factors.u) + index_ * view_.x.m * k_;
    T* packed = space_.take<T>(count_ * rank_);
    for (int64_t i = 0; i < count_; ++i) {
      std::memcpy(packed + i * rank_, u + rows_[i] * k_, static_cast<size_t>(rank_) * sizeof(T));
    }
    return packed;
  }

  Operand<T> right_factor() const { return {vh_, rank_, n_, n_}; }

  /// C: the kept rows of the incoming gradient, where they lie if that is possible.
  Operand<T> incoming() {
    const MatricesView& x = view_.x;
    if constexpr (std::is_same_v<E, T>) {
      if (count_ == x.m && x.column_stride == 1) return {x_, count_, n_, x.row_stride};
    }
    const Product c = room(count_, n_);
    for (int64_t i = 0; i < count_; ++i) {
      widen_row(x_ + rows_[i] * x.row_stride, x.column_stride, n_, c.data + i * c.stride);
    }
    return operand(c);
  }

  /// Room for what is returned, in its place if whole tiles fit there.
  Product result() {
    if constexpr (std::is_same_v<E, T>) {
      if (count_ == view_.x.m && n_ % TILE_WIDTH<T> == 0) {
        std::memset(out_, 0, static_cast<size_t>(count_ * n_) * sizeof(T));
        return {out_, count_, n_, n_};
      }
    }
    return zeros(count_, n_);
  }

  /// P = Uᵀ C V, the longer side first.
  Product inner_product(const Operand<T>& left, const Operand<T>& right, const Operand<T>& c) {
    const Product p = zeros(rank_, rank_);
    if (count_ <= n_) {
      const Product part = zeros(count_, rank_);
      add(c, right.transposed(), part);
      add(left.transposed(), operand(part), p);
    } else {
      const Product part = zeros(rank_, n_);
      add(left.transposed(), c, part);
      add(operand(part), right.transposed(), p);
    }
    return p;
  }

  /// Q D Qᵀ of the square Q.
  Product stretched_square(const Operand<T>& q) {
    const Product scaled = room(q.rows, q.columns);
    for (int64_t i = 0; i < q.rows; ++i) {
      for (int64_t j = 0; j < q.columns; ++j) {
        const T entry = q.data[i * q.row_stride + j * q.column_stride];
        scaled.data[i * scaled.stride + j] = entry * static_cast<T>(stretch_[j]);
      }
    }
    const Product square = zeros(q.rows, q.rows);
    add(operand(scaled), q.transposed(), square);
    return square;
  }

  /// Γ⁻∘S + Γ⁺∘A − D P (or P D), S and A the symmetric and skew parts of P.
  Product within_of(const Product& p, const SpectralGradient& gradient, bool wide) {
    const Product mirror = room(rank_, rank_), out = room(rank_, rank_);
    for (int64_t i = 0; i < rank_; ++i) {
      for (int64_t j = 0; j < rank_; ++j) {
        mirror.data[j * mirror.stride + i] = p.data[i * p.stride + j];
      }
    }
    // Beyond the last value only what lies beyond the columns of the result comes of them.
    const double *s = whole_vectors(s_), *g = whole_vectors(g_), *stretch = whole_vectors(stretch_),
                 *d = whole_vectors(gradient.derivative + index_ * k_),
                 *c = whole_vectors(gradient.curvature + index_ * k_);
    const f64s at_zero = f64s{} + gradient.at_zero[index_];
    for (int64_t i = 0; i < rank_; ++i) {
      const T *entries = p.data + i * p.stride, *mirrors = mirror.data + i * mirror.stride;
      T* to = out.data + i * out.stride;
      for (int64_t j = 0; j < rank_; j += LANES) {
        const f64s s_j = load<f64s>(s + j), g_j = load<f64s>(g + j), d_j = load<f64s>(d + j);
        const f64s sum = s[i] + s_j, gap = s[i] - s_j, rise = g[i] - g_j;
        const f64s plus = sum > 0.0 ? (g[i] + g_j) / sum : at_zero;
        const f64s smooth = 0.5 * (d[i] + d_j) - gap * (c[i] - load<f64s>(c + j)) * (1.0 / 12);
        const f64s size =
            __builtin_fabs(g[i]) + absolute(g_j) + sum * (__builtin_fabs(d[i]) + absolute(d_j));
        // Of two equal values that a jump parts, neither is determined.
        const f64s quotient = gap != 0.0 ? rise / gap : f64s{};
        const f64s slope = absolute(rise - gap * smooth) > JUMP * size ? quotient
                           : absolute(gap) <= NEAR * 0.5 * sum         ? smooth
                                                                       : quotient;
        const f64s minus = s[i] > 0.0 ? (s_j > 0.0 ? slope : plus) : plus;
        const f64s entry = load<f64s>(entries + j);
        const f64s mean = 0.5 * (entry + load<f64s>(mirrors + j));
        const f64s within = plus * entry + (minus - plus) * mean;
        const f64s along = wide ? f64s{} + stretch[i] : load<f64s>(stretch + j);
        store_as(to + j, within - along * entry);
      }
    }
    return out;
  }

  /// The first rank_ numbers, in room for whole vectors of them.
  const double* whole_vectors(const double* from) {
    double* copy = space_.take<double>(padded(rank_));
    for (int64_t j = 0; j < padded(rank_); ++j) copy[j] = j < rank_ ? from[j] : 0.0;
    return copy;
  }

  /// `mapped` [count, n] into the kept rows of out, if it is not there, x into the others.
  void write(const Product& mapped) const {
    const int64_t step = view_.x.column_stride;
    for (int64_t i = 0, next = 0; i < view_.x.m; ++i) {
      E* to = out_ + i * n_;
      if (next < count_ && rows_[next] == i) {
        const T* from = mapped.data + next++ * mapped.stride;
        if (static_cast<const void*>(from) != to) narrow_row(from, n_, to);
      } else {
        const E* from = x_ + i * view_.x.row_stride;
        for (int64_t j = 0; j < n_; ++j) to[j] = from[j * step];
      }
    }
  }

  const SpectralMapView& view_;
  const int64_t index_, n_, k_;
  const E* x_;
  E* out_;
  const T* vh_;
  const double *s_, *g_;
  Space space_;
  int64_t* rows_;
  T* panel_;
  double* stretch_ = nullptr;
  int64_t count_ = 0, rank_ = 0;
};

/// The factors of matrix `index`; see SpectralFactors.
template <class E>
void factorize(const MatricesView& x, const uint8_t* mask, int64_t index,
               const SpectralFactors& out, int8_t* method, double* scratch) {
  using T = typename SpectralOne<E>::T;
  const int64_t short_side = x.m < x.n ? x.m : x.n, long_side = x.m < x.n ? x.n : x.m;
  const int64_t engine = padded(batched_svd_scratch(short_side, long_side));
  Space space(scratch + engine);
  int64_t* rows = space.take<int64_t>(x.m);
  const int64_t count = kept_rows(mask, index, x.m, rows), n = x.n, k = out.k;
  const int64_t rank = count < n ? count : n;
  T *u = static_cast<T*>(out.u) + index * x.m * k, *vh = static_cast<T*>(out.vh) + index * k * n;
  double *s = out.s + index * k, *values = space.take<double>(k),
         *bounds = space.take<double>(2 * k);
  const E* from = static_cast<const E*>(x.data) + index * x.batch_stride;
  MatricesView kept{from, x.dtype, 1, count, n, 0, x.row_stride, x.column_stride};
  T* left = u;
  if (count < x.m) {
    E* packed = space.take<E>(count * n);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        packed[i * n + j] = from[rows[i] * x.row_stride + j * x.column_stride];
      }
    }
    kept = {packed, x.dtype, 1, count, n, 0, n, 1};
    left = space.take<T>(count * rank);
    std::memset(u, 0, static_cast<size_t>(x.m * k) * sizeof(T));
  }
  *method = SVD_GRAM;
  if (rank > 0) {
    const SvdView results{rank, values, left, vh, sizeof(T) == 8, bounds, nullptr, method};
    batched_svd_one(kept, 0, results, false, scratch);
  }
  if (left != u) {
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(u + rows[i] * k, left + i * rank, static_cast<size_t>(rank) * sizeof(T));
    }
  }
  for (int64_t j = 0; j < k; ++j) s[j] = j < rank && bounds[j] > 0.0 ? values[j] : 0.0;
  std::memset(vh + rank * n, 0, static_cast<size_t>((k - rank) * n) * sizeof(T));
}

}  // namespace

void spectral_factors_one(const MatricesView& x, const uint8_t* mask, int64_t index,
                          const SpectralFactors& out, int8_t* methods, double* scratch) {
  switch (x.dtype) {
    case DType::f64:
      return factorize<double>(x, mask, index, out, methods + index, scratch);
    case DType::f32:
      return factorize<float>(x, mask, index, out, methods + index, scratch);
    case DType::f16:
      return factorize<f16>(x, mask, index, out, methods + index, scratch);
    case DType::bf16:
      return factorize<bf16>(x, mask, index, out, methods + index, scratch);
  }
}

void spectral_map_one(const SpectralMapView& view, int64_t index, double* scratch) {
  switch (view.x.dtype) {
    case DType::f64:
      return SpectralOne<double>(view, index, scratch).map();
    case DType::f32:
      return SpectralOne<float>(view, index, scratch).map();
    case DType::f16:
      return SpectralOne<f16>(view, index, scratch).map();
    case DType::bf16:
      return SpectralOne<bf16>(view, index, scratch).map();
  }
}

void spectral_map_backward_one(const SpectralMapView& view, const SpectralGradient& gradient,
                               int64_t index, double* scratch) {
  switch (view.x.dtype) {
    case DType::f64:
      return SpectralOne<double>(view, index, scratch).backward(gradient);
    case DType::f32:
      return SpectralOne<float>(view, index, scratch).backward(gradient);
    case DType::f16:
      return SpectralOne<f16>(view, index, scratch).backward(gradient);
    case DType::bf16:
      return SpectralOne<bf16>(view, index, scratch).backward(gradient);
  }
}

}  // namespace aniso::cpu::ANISO_ISA
