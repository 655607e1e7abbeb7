// One pass over p in squares, so that an entry and its mirror image are near.
#include "cpu/spectral_map_kernel.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

constexpr int64_t SQUARE = 16;

template <class T>
void one_matrix(const SpectralInnerView& view, int64_t index) {
  const int64_t k = view.k;
  const T* p = static_cast<const T*>(view.p) + index * k * k;
  T* out = static_cast<T*>(view.out) + index * k * k;
  const double *s = view.s + index * k, *values = view.values + index * k;
  const double *slopes = view.slopes + index * k * k, *stretch = view.stretch + index * k;
  const double at_zero = view.at_zero[index];
  for (int64_t top = 0; top < k; top += SQUARE) {
    const int64_t bottom = top + SQUARE < k ? top + SQUARE : k;
    for (int64_t left = 0; left < k; left += SQUARE) {
      const int64_t right = left + SQUARE < k ? left + SQUARE : k;
      for (int64_t i = top; i < bottom; ++i) {
        for (int64_t j = left; j < right; ++j) {
          const double sum = s[i] + s[j], entry = p[i * k + j], mirror = p[j * k + i];
          const double plus = sum > 0.0 ? (values[i] + values[j]) / sum : at_zero;
          const double minus = s[i] > 0.0 && s[j] > 0.0 ? slopes[i * k + j] : plus;
          const double within = plus * entry + (minus - plus) * (0.5 * (entry + mirror));
          out[i * k + j] = static_cast<T>(within - stretch[view.by_row ? i : j] * entry);
        }
      }
    }
  }
}

}  // namespace

void spectral_inner_part(const SpectralInnerView& view, int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) {
    view.wide ? one_matrix<double>(view, index) : one_matrix<float>(view, index);
  }
}

}  // namespace aniso::cpu::ANISO_ISA
