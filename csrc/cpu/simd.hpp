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
// As many bytes, so twice and four times the lanes.
typedef float f32s __attribute__((vector_size(LANES * 8)));
typedef uint32_t u32s __attribute__((vector_size(LANES * 8)));
typedef uint16_t u16s __attribute__((vector_size(LANES * 8)));

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

// value: one number as float64.
inline double value(double x) { return x; }
inline double value(float x) { return x; }
inline double value(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  return load_as<float>(&bits);
}
inline double value(f16 x) { return static_cast<double>(load_as<_Float16>(&x)); }

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
template <class V>
inline V load(const bf16* p) {
  if constexpr (sizeof(V) == sizeof(double)) {
    return value(*p);
  } else {
#if defined(__AVX512F__)
    // A shuffle within lanes instead of widening across them and shifting: 15 % of group_moments.
    const __m256i high_halves =
        _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,  //
                         -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
    const __m256i bits = _mm256_broadcastsi128_si256(load_as<__m128i>(p));
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_shuffle_epi8(bits, high_halves)));
#elif defined(__AVX2__)
    const __m128i bits = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(bits, 16)));
#else
    return V{value(p[0]), value(p[1])};
#endif
  }
}
template <class V>
inline V load(const f16* p) {
  if constexpr (sizeof(V) == sizeof(double)) {
    return value(*p);
  } else {
#if defined(__AVX512F__)
    return _mm512_cvtps_pd(_mm256_cvtph_ps(load_as<__m128i>(p)));
#elif defined(__AVX2__)
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtps_pd(_mm_cvtph_ps(bits));
#else
    return V{value(p[0]), value(p[1])};
#endif
  }
}

inline f32s as_floats(u32s bits) { return load_as<f32s>(&bits); }

// Halves<T>: a vector of half-precision numbers as two vectors of float32. widen() takes the
// cheapest order: slot(k) is where number k comes to lie in the two vectors.
template <class T>
struct Halves;
template <>
struct Halves<bf16> {
  static void widen(u16s bits, f32s (&x)[2]) {
    const u32s pairs = load_as<u32s>(&bits);
    x[0] = as_floats(pairs << 16);
    x[1] = as_floats(pairs & 0xffff0000u);
  }
  static constexpr int slot(int k) { return k / 2 + k % 2 * 2 * LANES; }
};
template <>
struct Halves<f16> {
  static void widen(u16s bits, f32s (&x)[2]) {
#if defined(__AVX512F__)
    const __m512i all = load_as<__m512i>(&bits);
    x[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(all));
    x[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(all, 1));
#elif defined(__AVX2__)
    const __m256i all = load_as<__m256i>(&bits);
    x[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(all));
    x[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(all, 1));
#else
    for (int k = 0; k < 4 * LANES; ++k) {
      x[k / (2 * LANES)][k % (2 * LANES)] = static_cast<float>(value(f16{bits[k]}));
    }
#endif
  }
  static constexpr int slot(int k) { return k; }
};

// The two halves of a vector of float32, as float64.
inline f64s low_as_f64(f32s v) {
#if defined(__AVX512F__)
  return _mm512_cvtps_pd(_mm512_castps512_ps256(v));
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm256_castps256_ps128(v));
#else
  return f64s{v[0], v[1]};
#endif
}
inline f64s high_as_f64(f32s v) {
#if defined(__AVX512F__)
  return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
#else
  return f64s{v[2], v[3]};
#endif
}

template <class V>
inline V max_of(V a, V b) {
  return a > b ? a : b;
}

/// max(a, |b|), where a is not negative.
inline f32s max_abs(f32s a, f32s b) {
#if defined(__AVX512DQ__)
  return _mm512_range_ps(a, b, 0b1011);
#else
  return max_of(a, as_floats(load_as<u32s>(&b) & 0x7fffffffu));
#endif
}
inline f64s max_abs(f64s a, f64s b) {
#if defined(__AVX512DQ__)
  return _mm512_range_pd(a, b, 0b1011);
#else
  return max_of(a, max_of(b, -b));
#endif
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
