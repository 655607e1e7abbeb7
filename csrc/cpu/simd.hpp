// Vectors for kernels that are compiled once per instruction set (ANISO_ISA names the namespace).
// Everything lies in an unnamed namespace: an inline function of a shared header would be kept by
// the linker once for all instruction sets. Arithmetic uses the compiler's vector types;
// conversions use intrinsics, because GCC lowers __builtin_convertvector to half-width pieces.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace aniso::cpu::ANISO_ISA {
namespace {

// As wide as the registers: the compiler keeps wider vectors in memory.
#if defined(__AVX512F__)
constexpr int LANES = 8;
#elif defined(__AVX2__)
constexpr int LANES = 4;
#else
constexpr int LANES = 2;
#endif
typedef double f64s __attribute__((vector_size(LANES * 8)));
typedef float f32s __attribute__((vector_size(LANES * 8)));  // as many bytes: twice the lanes

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class V, class T>
inline V load_as(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class T>
inline void store(T* p, const V& v) {
  std::memcpy(p, &v, sizeof v);
}

// load<V>: the values at p as float64; V is double or f64s.
template <class V>
inline V load(const double* p) {
  return load_as<V>(p);
}
template <class V>
inline V load(const float* p) {
  if constexpr (sizeof(V) == sizeof(double)) {
    return *p;
  } else {
#if defined(__AVX512F__)
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(__AVX2__)
    return _mm256_cvtps_pd(_mm_loadu_ps(p));
#else
    return V{p[0], p[1]};
#endif
  }
}

// widen: half-precision values at p as float32.
inline float widen1(const bf16* p) {
  const uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
  return load_as<float>(&bits);
}
inline float widen1(const f16* p) { return static_cast<float>(load_as<_Float16>(p)); }

inline f32s widen(const bf16* p) {
#if defined(__AVX512F__)
  const __m512i wide = _mm512_cvtepu16_epi32(load_as<__m256i>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu16_epi32(load_as<__m128i>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
#else
  return f32s{widen1(p), widen1(p + 1), widen1(p + 2), widen1(p + 3)};
#endif
}
inline f32s widen(const f16* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(load_as<__m256i>(p));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(load_as<__m128i>(p));
#else
  return f32s{widen1(p), widen1(p + 1), widen1(p + 2), widen1(p + 3)};
#endif
}

template <class V>
inline V max_of(V a, V b) {
  return a > b ? a : b;
}

inline double sum_lanes(f64s v) {
  double values[LANES];
  store(values, v);
#pragma GCC unroll 3
  for (int half = LANES / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  }
  return values[0];
}

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
