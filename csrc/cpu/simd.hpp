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
typedef float f32s __attribute__((vector_size(LANES * 4)));

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
  const __m256i wide = _mm256_cvtepu16_epi32(load_as<__m128i>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
#elif defined(__AVX2__)
  const __m128i wide = _mm_cvtepu16_epi32(_mm_cvtsi64_si128(load_as<int64_t>(p)));
  return _mm_castsi128_ps(_mm_slli_epi32(wide, 16));
#else
  return f32s{widen1(p), widen1(p + 1)};
#endif
}
inline f32s widen(const f16* p) {
#if defined(__AVX512F__)
  return _mm256_cvtph_ps(load_as<__m128i>(p));
#elif defined(__AVX2__)
  return _mm_cvtph_ps(_mm_cvtsi64_si128(load_as<int64_t>(p)));
#else
  return f32s{widen1(p), widen1(p + 1)};
#endif
}

template <class V>
inline V max_of(V a, V b) {
  return a > b ? a : b;
}

inline double sum_lanes(f64s v) {
  double total = 0.0;
  for (int i = 0; i < LANES; ++i) total += v[i];
  return total;
}

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
