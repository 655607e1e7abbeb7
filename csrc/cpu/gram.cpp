#include "cpu/gram.hpp"

#include <algorithm>
#include <cstring>

#include "common/aligned.hpp"
#include "common/arena.hpp"
#include "common/parallel.hpp"
#include "cpu/gram_kernel.hpp"
#include "cpu/gram_vector_kernel.hpp"

namespace aniso::cpu {

namespace {

[[maybe_unused]] GramPlan plan_of(DType dtype) {
  if (dtype == DType::bf16) return GRAM_BF16;
  return dtype == DType::f32 ? GRAM_SINGLE : GRAM_HALF;
}

/// Rows of a block, whole parts: see GRAM_BLOCK_BYTES.
[[maybe_unused]] int64_t block_rows(const GramPlan& plan, int64_t padded, int64_t n) {
  const int64_t wanted = (n + plan.part - 1) / plan.part;
  const int64_t fitting = GRAM_BLOCK_BYTES / (plan.bytes * padded * plan.part);
  return std::clamp<int64_t>(std::min(wanted, fitting), 1, GRAM_BLOCK_PARTS) * plan.part;
}

/// A bfloat16 number near x.
[[maybe_unused]] float nearest_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x8000) & 0xffff0000u;
  std::memcpy(&x, &bits, sizeof bits);
  return x;
}

}  // namespace

void gram(const RowsView& rows, const MaskView& mask, const double* pilot, double* raw,
          double* unit, double* totals, double* noise, int threads) {
#if defined(ANISO_AMX)
  const GramPlan plan = plan_of(rows.dtype);
  const int64_t groups = (rows.d + GRAM_GROUP - 1) / GRAM_GROUP, padded = groups * GRAM_GROUP;
  const int64_t panels = padded / GRAM_PANEL, block = block_rows(plan, padded, rows.n);
  const int64_t squares = groups * (groups + 1) / 2 * GRAM_GROUP * GRAM_GROUP;
  const int members = static_cast<int>(std::min<int64_t>(std::max(threads, 1), groups));
  // bfloat16 rows may turn out to need digits, which come in parts of their own.
  const bool halves = rows.dtype == DType::bf16;
  const int64_t left =
      padded * (halves ? GRAM_HALF.digits * (block + GRAM_HALF.part) : plan.digits * block);
  const int64_t right = members * GRAM_RIGHT_BYTES;
  const int64_t region = halves ? members * GRAM_BF16_REGION_SUMS : 0;
  const int64_t sums = ((raw != nullptr) + (unit != nullptr)) * squares;
  Arena arena(Arena::rounded(left) + right + sizeof(float) * region + sizeof(double) * sums);
  int8_t* const left_digits = arena.array<int8_t>(left);
  int8_t* const right_digits = arena.array<int8_t>(right);
  float* const region_sums = arena.array<float>(region);
  double* const raw_sums = raw == nullptr ? nullptr : arena.array<double>(squares);
  double* const unit_sums = unit == nullptr ? nullptr : arena.array<double>(squares);
  AlignedArray<RowScale> scales(block + GRAM_STEP);
  AlignedArray<float> largest(members * 2 * padded), zero_row(padded);
  AlignedArray<float> pilots(2 * padded);
  AlignedArray<double> factors(padded), column_totals(2 * padded), noises(2 * panels);
  AlignedArray<GramRow> bf16_rows(block + GRAM_GROUP);
  AlignedArray<int16_t> extremes(members * 2 * padded);
  AlignedArray<float> exponents(2 * members);
  AlignedArray<double> weights(2 * members);
  AlignedArray<double> vectors(13 * padded + 8 + 2 * panels);
  double* const vector = vectors.data();
  double* const numbers = vector + 13 * padded;
  const GramBf16 bf16{bf16_rows.data(),
                      extremes.data(),
                      exponents.data(),
                      weights.data(),
                      vector,
                      numbers,
                      {vector + padded, vector + 2 * padded, vector + 3 * padded},
                      numbers + 4,
                      {vector + 4 * padded, vector + 5 * padded, vector + 6 * padded},
                      numbers + 8,
                      {vector + 7 * padded, vector + 9 * padded, vector + 11 * padded}};
  const GramScratch scratch{padded,
                            block,
                            left_digits,
                            right_digits,
                            region_sums,
                            scales.data(),
                            largest.data(),
                            factors.data(),
                            {pilots.data(), pilots.data() + padded},
                            {column_totals.data(), column_totals.data() + padded},
                            {noises.data(), noises.data() + panels},
                            {raw_sums, unit_sums},
                            {raw, unit},
                            zero_row.data(),
                            bf16};
  for (int which = 0; which < 2; ++which) {
    for (int64_t k = 0; k < rows.d; ++k) {
      scratch.pilots[which][k] = static_cast<float>(pilot[which * rows.d + k]);
    }
  }
  for (int64_t k = 0; k < rows.d; ++k) bf16.pilot[k] = nearest_bf16(scratch.pilots[0][k]);
  Team team{members};
  parallel_parts(members, members, [&](int member, int64_t, int64_t) {
    amx::gram_member(rows, mask, scratch, team, member);
  });
  for (int which = 0; which < 2; ++which) {
    if (scratch.sums[which] == nullptr) continue;
    double* out = totals + which * rows.d;
    for (int64_t k = 0; k < rows.d; ++k) out[k] += scratch.totals[which][k];
    for (int64_t panel = 0; panel < panels; ++panel) noise[which] += scratch.noise[which][panel];
  }
#else
  (void)rows, (void)mask, (void)pilot, (void)raw, (void)unit, (void)totals, (void)noise,
      (void)threads;
#endif
}

void gram_vector(const RowsView& rows, const MaskView& mask, const double* pilot, double* raw,
                 double* unit, double* totals, int threads, Isa isa) {
  const int64_t bands = (rows.d + GRAM_VECTOR_BAND - 1) / GRAM_VECTOR_BAND;
  const int64_t padded = bands * GRAM_VECTOR_BAND;
  const int members = static_cast<int>(std::min<int64_t>(std::max(threads, 1), bands));
  AlignedArray<double> weights(3 * GRAM_VECTOR_ROWS);
  AlignedArray<double> column_totals(2 * padded);
  const int64_t sums = ((raw != nullptr) + (unit != nullptr)) * padded * padded;
  Arena arena((sums + padded * GRAM_VECTOR_ROWS) * sizeof(double));
  double* const columns = arena.array<double>(padded * GRAM_VECTOR_ROWS);
  double* const raw_sums = raw == nullptr ? nullptr : arena.array<double>(padded * padded);
  double* const unit_sums = unit == nullptr ? nullptr : arena.array<double>(padded * padded);
  const GramVectorScratch scratch{padded,
                                  columns,
                                  weights.data(),
                                  weights.data() + 2 * GRAM_VECTOR_ROWS,
                                  {raw_sums, unit_sums},
                                  {raw, unit},
                                  {column_totals.data(), column_totals.data() + padded},
                                  pilot};
  auto* const run = ANISO_FOR_ISA(isa, gram_vector_member);
  Team team{members};
  parallel_parts(members, members,
                 [&](int member, int64_t, int64_t) { run(rows, mask, scratch, team, member); });
  for (int which = 0; which < 2; ++which) {
    if (scratch.sums[which] == nullptr) continue;
    for (int64_t k = 0; k < rows.d; ++k) totals[which * rows.d + k] += scratch.totals[which][k];
  }
}

}  // namespace aniso::cpu
