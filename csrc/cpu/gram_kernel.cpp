// The kernel of gram for processors with AMX. Phases over a block of rows, with a barrier between:
// scales of rows and columns, digits of every panel, products of every pair of panels. The products
// go by regions of the result that stay in the second-level cache of one processor, and over the
// parts of the block within.
#include "cpu/gram_kernel.hpp"

#include "cpu/amx_digits.hpp"
#include "cpu/gram_bf16.hpp"
#include "cpu/symmetric.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

/// One block of rows on its way through the phases.
template <class T, int S>
class Block {
 public:
  Block(const RowsView& rows, const MaskView& mask, const GramScratch& scratch, Team& team,
        int member)
      : rows_(rows), mask_(mask), scratch_(scratch), team_(team), member_(member) {}

  void run(int64_t first, int64_t count) {
    count_ = count;
    steps_ = (count + GRAM_STEP - 1) / GRAM_STEP;
    scale_rows(first);
    team_wait(team_);
    for (int which = 0; which < 2; ++which) {
      if (scratch_.sums[which] == nullptr) continue;
      const int64_t panels = scratch_.padded / GRAM_PANEL;
      for (int64_t panel; (panel = team_take(team_)) < panels;) {
        which == 0 ? cut<false>(panel) : cut<true>(panel);
      }
      team_wait(team_);
      multiply(scratch_.sums[which]);
      team_wait(team_);
    }
  }

 private:
  static constexpr int64_t STEPS = (S == 5 ? GRAM_SINGLE : GRAM_HALF).part / GRAM_STEP;

  void scale_rows(int64_t first) {
    float* largest = scratch_.largest + member_ * 2 * scratch_.padded;
    for (int64_t k = 0; k < 2 * scratch_.padded; ++k) largest[k] = 0.0f;
    // Shared out as they come: a thread may start late.
    for (int64_t step; (step = team_take(team_)) < steps_;) {
      for (int64_t r = step * GRAM_STEP; r < (step + 1) * GRAM_STEP; ++r) {
        scratch_.scales[r] = r < count_ ? scale_of(first + r) : empty();
        grow(scratch_.scales[r], largest);
      }
    }
  }

  RowScale scale_of(int64_t i) const {
    if (mask_.data != nullptr && mask_.data[i * mask_.stride] == 0) return empty();
    const T* row = static_cast<const T*>(rows_.data) + i * rows_.row_stride;
    const RowScale scale = direction_of(row, rows_.d);
    return scale.row == nullptr ? empty() : scale;
  }

  RowScale empty() const { return {scratch_.zero_row, 0, 0, 0}; }

  void grow(const RowScale& scale, float* largest) const {
    const T* row = static_cast<const T*>(scale.row);
    const __m512 exponent = _mm512_set1_ps(scale.exponent), inverse = _mm512_set1_ps(scale.inverse);
    float* largest_unit = largest + scratch_.padded;
    const __m512 kept = keeps<false>(scale), directed = keeps<true>(scale);
    for (int64_t k = 0; k < rows_.d; k += 16) {
      const __m512 x = load16(row + k, columns_from(k, rows_.d));
      const __m512 unit = _mm512_scalef_ps(x, exponent) * inverse;
      raise(largest + k, x - kept * _mm512_loadu_ps(scratch_.pilots[0] + k));
      // Where x̂ meets the pilot, what float32 rounds away of x̂ is all that is left.
      const __m512 tail = _mm512_abs_ps(unit) * 0x1p-23f;
      const __m512 about = unit - directed * _mm512_loadu_ps(scratch_.pilots[1] + k);
      raise(largest_unit + k, _mm512_abs_ps(about) + tail);
    }
  }

  static void raise(float* largest, __m512 x) {
    _mm512_storeu_ps(largest, _mm512_max_ps(_mm512_abs_ps(x), _mm512_loadu_ps(largest)));
  }

  /// 1 where the row counts, else 0: the pilot is subtracted from rows that count.
  template <bool unit>
  __m512 keeps(const RowScale& scale) const {
    const bool kept = unit ? scale.inverse != 0.0f : scale.row != scratch_.zero_row;
    return _mm512_set1_ps(kept ? 1.0f : 0.0f);
  }

  /// The exponents that bring the columns of a panel to 24-bit fixed point; sets their factors.
  __m512 fix_columns(int64_t panel, bool unit) const {
    __m512 largest = _mm512_setzero_ps();
    for (int member = 0; member < team_.members; ++member) {
      const float* part = scratch_.largest + (2 * member + unit) * scratch_.padded;
      largest = _mm512_max_ps(largest, _mm512_loadu_ps(part + panel * GRAM_PANEL));
    }
    // The largest 24-bit number whose digits are all in [-128, 127] is 0x7f7f7f = 0.996 · 2²³; the
    // margin also covers the rounding of |x̂|.
    float values[16], exponents[16];
    double noise = 0.0;
    _mm512_storeu_ps(values, largest);
    for (int k = 0; k < 16; ++k) {
      const int exponent = values[k] == 0.0f ? 0 : 22 - __builtin_ilogb(values[k] * 1.005);
      exponents[k] = static_cast<float>(exponent);
      if (values[k] != 0.0f) noise += __builtin_scalbn(1.0, -2 * (exponent + (S - 3) * DIGIT_BITS));
      scratch_.factors[panel * GRAM_PANEL + k] =
          values[k] == 0.0f ? 0.0 : __builtin_scalbn(1.0, 2 * DIGIT_BITS - exponent);
    }
    // Rounding errors lie evenly within half a unit of the last digit: variance 1/12. With five
    // digits the products left out, four of two digits, add at random what rounding by 1.5 would,
    // in columns whose largest value is five times the typical one.
    constexpr double VARIANCE = S == 5 ? 1.0 / 12.0 + 1.5 : 1.0 / 12.0;
    scratch_.noise[unit][panel] += noise * static_cast<double>(count_) * VARIANCE;
    return _mm512_loadu_ps(exponents);
  }

  template <bool unit>
  void cut(int64_t panel) const {
    const __m512 exponents = fix_columns(panel, unit);
    const int64_t first = panel * GRAM_PANEL;
    const __mmask16 columns = columns_from(first, rows_.d);
    Sums sums;
    for (int64_t step = 0; step < steps_; ++step) {
      alignas(64) int8_t tiles[S * TILE_BYTES];
      int8_t* left = scratch_.digits + tile_at(panel, step);
      for (int quad = 0; quad < GRAM_PANEL; ++quad) {
        __m512i high[4], low[4];
        for (int i = 0; i < 4; ++i) {
          const RowScale* row = scratch_.scales + step * GRAM_STEP + quad * 4 + i;
          fix<unit>(*row, first, columns, exponents, high[i], low[i], sums);
          if (step + 1 < steps_) {
            __builtin_prefetch(static_cast<const T*>(row[GRAM_STEP].row) + first);
          }
        }
        store_digits<3>(high, tiles + quad * 64);
        if (S == 5) store_digits<2>(low, tiles + 3 * TILE_BYTES + quad * 64);
      }
      for (int digit = 0; digit < S; ++digit) {
        transpose(tiles + digit * TILE_BYTES, left + digit * TILE_BYTES);
      }
      sums.settle();
    }
    sums.add_to(scratch_.totals[unit] + first, scratch_.factors + first);
  }

  /// Columns of fixed-point numbers, summed exactly: a step of 24-bit numbers stays within int32.
  struct Sums {
    __m512i high = _mm512_setzero_si512(), low = high;
    __m512d settled[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};

    void settle() {
      const __m512d down = _mm512_set1_pd(0x1p-16);
      for (int half = 0; half < 2; ++half) {
        const __m512d tail = _mm512_cvtepi32_pd(half_of(low, half));
        const __m512d head = _mm512_cvtepi32_pd(half_of(high, half));
        settled[half] += _mm512_fmadd_pd(tail, down, head);
      }
      high = low = _mm512_setzero_si512();
    }
    void add_to(double* totals, const double* factors) const {
      const __m512d unit_of_first_digit = _mm512_set1_pd(0x1p-16);
      for (int half = 0; half < 2; ++half) {
        double* out = totals + 8 * half;
        const __m512d factor = _mm512_loadu_pd(factors + 8 * half) * unit_of_first_digit;
        _mm512_storeu_pd(out, _mm512_fmadd_pd(settled[half], factor, _mm512_loadu_pd(out)));
      }
    }
    static __m256i half_of(__m512i v, int half) {
      return half == 0 ? _mm512_castsi512_si256(v) : _mm512_extracti64x4_epi64(v, 1);
    }
  };

  /// 16 columns of a row in fixed point, as three digits in `high` and three more in `low`.
  template <bool unit>
  void fix(const RowScale& scale, int64_t first, __mmask16 columns, __m512 exponents, __m512i& high,
           __m512i& low, Sums& sums) const {
    const __m512i signs = _mm512_set1_epi32(0x808080);
    __m512 x = load16(static_cast<const T*>(scale.row) + first, columns);
    __m512 rest = _mm512_setzero_ps();
    if (unit) {
      const __m512 inverse = _mm512_set1_ps(scale.inverse);
      const __m512 y = _mm512_scalef_ps(x, _mm512_set1_ps(scale.exponent));
      // A rounding of its own, which the compiler must not fuse with the subtraction below.
      x = _mm512_mul_round_ps(y, inverse, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      // What the product rounds away, and what the float32 inverse leaves out.
      rest = _mm512_fmadd_ps(y, _mm512_set1_ps(scale.inverse_low), _mm512_fmsub_ps(y, inverse, x));
    }
    // x - pilot, and what that rounds away.
    const __m512 pilot = keeps<unit>(scale) * _mm512_loadu_ps(scratch_.pilots[unit] + first);
    const __m512 centred = x - pilot, part = centred - x;
    rest += (x - (centred - part)) - (pilot + part);
    // The sum again as a number and its rest: a rest may be some units where rows are alike.
    const __m512 sum = centred + rest;
    rest = _mm512_scalef_ps(rest - (sum - centred), exponents);
    x = _mm512_scalef_ps(sum, exponents);
    __m512i v = _mm512_cvtps_epi32(x);
    if (S == 5) {
      const __m512i low_signs = _mm512_set1_epi32(0x8080);
      rest = rest + (x - _mm512_cvtepi32_ps(v));
      __m512i u = _mm512_cvtps_epi32(rest * 0x1p16f);
      u = _mm512_add_epi32(u, low_signs);
      v = _mm512_add_epi32(v, _mm512_srai_epi32(u, 16));
      const __m512i digits = _mm512_and_si512(u, _mm512_set1_epi32(0xffff));
      low = _mm512_xor_si512(digits, low_signs);
      sums.low = _mm512_add_epi32(sums.low, _mm512_sub_epi32(digits, low_signs));
    }
    sums.high = _mm512_add_epi32(sums.high, v);
    high = _mm512_xor_si512(_mm512_add_epi32(v, signs), signs);
  }

  /// The lowest `count` bytes of four rows as digits, highest first, four rows to a 32-bit word.
  template <int count>
  static void store_digits(const __m512i (&u)[4], int8_t* out) {
    const auto select = [](uint32_t mask, __m512i yes, __m512i no) {
      return _mm512_ternarylogic_epi32(_mm512_set1_epi32(static_cast<int>(mask)), yes, no, 0xca);
    };
    const __m512i even01 = select(0xff00ff00, _mm512_slli_epi32(u[1], 8), u[0]);
    const __m512i even23 = select(0xff00ff00, _mm512_slli_epi32(u[3], 8), u[2]);
    const __m512i odd01 = select(0x0000ff00, u[1], _mm512_srli_epi32(u[0], 8));
    const __m512i odd23 = select(0x0000ff00, u[3], _mm512_srli_epi32(u[2], 8));
    int8_t* last = out + (count - 1) * TILE_BYTES;
    if (count == 3) {
      _mm512_store_si512(out, select(0xffff0000, even23, _mm512_srli_epi32(even01, 16)));
    }
    const __m512i odd = select(0xffff0000, _mm512_slli_epi32(odd23, 16), odd01);
    _mm512_store_si512(last - TILE_BYTES, odd);
    _mm512_store_si512(last, select(0xffff0000, _mm512_slli_epi32(even23, 16), even01));
  }

  /// Where the digits of a panel and a step lie: part of the block, panel, step.
  int64_t tile_at(int64_t panel, int64_t step) const {
    const int64_t panels = scratch_.padded / GRAM_PANEL, part = step / STEPS;
    return ((part * panels + panel) * STEPS + step % STEPS) * S * TILE_BYTES;
  }

  /// All pairs of panels on or below the diagonal, by regions.
  void multiply(double* sums) const {
    const GramRegions regions(scratch_.padded / GRAM_GROUP, GRAM_DIGIT_REGION);
    for (int64_t item; (item = team_take(team_)) < regions.count();) {
      const GramRegion region = regions.at(item);
      if (region.first_group >= region.last_group) continue;
      for (int64_t step = 0; step < steps_; step += STEPS) {
        const int64_t steps = steps_ - step < STEPS ? steps_ - step : STEPS;
        derive_right(region, step, steps);
        for (int64_t panel = 2 * region.first_group; panel < 2 * region.last_group; ++panel) {
          const int64_t last = region.last_panel < panel + 1 ? region.last_panel : panel + 1;
          if (region.first_panel < last) {
            multiply_panel(panel, region.first_panel, last, step, steps, sums);
          }
        }
      }
    }
  }

  /// The right digits of a band over the part of the block from `step` on, by this member.
  void derive_right(const GramRegion& region, int64_t step, int64_t steps) const {
    for (int64_t panel = region.first_panel; panel < region.last_panel; ++panel) {
      const int8_t* left = scratch_.digits + tile_at(panel, step);
      int8_t* out = right() + tile_at(panel - region.first_panel, 0);
      for (int64_t at = 0; at < steps * S * TILE_BYTES; at += TILE_BYTES) {
        transpose(left + at, out + at);
      }
    }
    // GCC's tile loads do not name the memory they read.
    __asm__ volatile("" ::: "memory");
  }

  int8_t* right() const { return scratch_.right + member_ * GRAM_RIGHT_BYTES; }

  /// A panel, which stays in the first-level cache, against a band of others, whose digits stay in
  /// the second, over the part of the block from `step` on. At every fourth tile operation, some
  /// rows of the sums of the pair before are promoted, not before a fifth of the way (their stores
  /// have ended by then), and some lines of the next panel come nearer.
  void multiply_panel(int64_t panel, int64_t first, int64_t last, int64_t step, int64_t steps,
                      double* sums) const {
    constexpr int EVERY = 4;
    const int64_t stops = OPERATIONS<S> / EVERY * steps, late = stops / 5;
    const int64_t lines = STEPS * S * TILE_BYTES / 64 / (stops * (last - first)) + 1;
    alignas(64) TileSums<S> products[2];
    const int8_t* left = scratch_.digits + tile_at(panel, step);
    Prefetch next(left + STEPS * S * TILE_BYTES, STEPS * S * TILE_BYTES);
    Promotion before{};
    for (int64_t other = first; other < last; ++other) {
      TileSums<S>& found = products[other % 2];
      int64_t due = -late * GRAM_PANEL;
      const int8_t* partner = right() + tile_at(other - first, 0);
      add_products<S>(left, partner, steps, found,
                      [&](int operation) __attribute__((always_inline)) {
                        if (operation % EVERY != EVERY - 1) return gap();
                        next.lines(lines);
                        for (due += GRAM_PANEL; due >= stops - late; due -= stops - late) {
                          before.promote();
                        }
                      });
      before = Promotion{&found, scratch_.factors + panel * GRAM_PANEL,
                         scratch_.factors + other * GRAM_PANEL, gram_place(sums, panel, other)};
    }
    for (int i = 0; i < GRAM_PANEL; ++i) before.promote();
  }

  /// sums += Σ_w products[w] 2^(-8w) · row factor · column factor, a row at a time. What stands
  /// below 2^(-8) of the first weight (S = 3: below 1) is added in float32: off the diagonal its
  /// rounding lies beyond the digits; on it, where squares add up, at some 4e-12 of a part's sum.
  struct Promotion {
    const TileSums<S>* products;
    const double* row_factors;
    const double* column_factors;
    double* sums;
    int next = 0;

    void promote() {
      if (products != nullptr) promote_row(next++);
    }

    void promote_row(int i) const {
      constexpr int EXACT = S == 5 ? 2 : 1;
      // 32 bits hold the first EXACT weights together.
      static_assert(EXACT == 1 || STEPS * GRAM_STEP * 128 * 128 * (256 + 2) < int64_t{1} << 31);
      const auto product = [&](int weight) {
        return _mm512_load_si512(&(*products)[weight][16 * i]);
      };
      __m512i head = product(0);
      for (int weight = 1; weight < EXACT; ++weight) {
        head = _mm512_add_epi32(_mm512_slli_epi32(head, DIGIT_BITS), product(weight));
      }
      __m512 tail = _mm512_cvtepi32_ps(product(WEIGHTS<S> - 1));
      for (int weight = WEIGHTS<S> - 2; weight >= EXACT; --weight) {
        tail = _mm512_fmadd_ps(tail, _mm512_set1_ps(0x1p-8f), _mm512_cvtepi32_ps(product(weight)));
      }
      const __m512d down = _mm512_set1_pd(0x1p-8);
      const __m512d row_factor = _mm512_set1_pd(row_factors[i] * (EXACT == 2 ? 0x1p-8 : 1.0));
      for (int half = 0; half < 2; ++half) {
        const __m512d light = half == 0 ? low_as_f64(tail) : high_as_f64(tail);
        const __m512d heavy = _mm512_cvtepi32_pd(half == 0 ? _mm512_castsi512_si256(head)
                                                           : _mm512_extracti64x4_epi64(head, 1));
        const __m512d total = _mm512_fmadd_pd(light, down, heavy);
        double* out = sums + i * GRAM_GROUP + 8 * half;
        const __m512d factor = row_factor * _mm512_loadu_pd(column_factors + 8 * half);
        _mm512_storeu_pd(out, _mm512_fmadd_pd(total, factor, _mm512_loadu_pd(out)));
      }
    }
  };

  const RowsView& rows_;
  const MaskView& mask_;
  const GramScratch& scratch_;
  Team& team_;
  int member_;
  int64_t count_ = 0;
  int64_t steps_ = 0;
};

template <class T, int S>
void run(const RowsView& rows, const MaskView& mask, const GramScratch& scratch, Team& team,
         int member) {
  Block<T, S> block(rows, mask, scratch, team, member);
  for (int64_t first = 0; first < rows.n; first += scratch.rows) {
    block.run(first, rows.n - first < scratch.rows ? rows.n - first : scratch.rows);
  }
}

/// Blocks of bfloat16 rows as they are; those of very different norms by their digits.
template <bool RAW, bool UNIT>
void run_bf16(const RowsView& rows, const MaskView& mask, const GramScratch& scratch, Team& team,
              int member) {
  Bf16Block<RAW, UNIT> block(rows, mask, scratch, team, member);
  Block<bf16, GRAM_HALF.digits> digits(rows, mask, scratch, team, member);
  for (int64_t first = 0; first < rows.n; first += scratch.rows) {
    const int64_t count = rows.n - first < scratch.rows ? rows.n - first : scratch.rows;
    if (!block.run(first, count)) digits.run(first, count);
  }
  block.settle();
}

/// Adds a group of rows of the lower triangle to both halves of the [d, d] result.
void add_symmetric(double* sums, int64_t group, int64_t d, double* out) {
  static_assert(TURNED_SIDE == GRAM_GROUP);
  const int64_t first = group * TURNED_SIDE,
                rows = d - first < TURNED_SIDE ? d - first : TURNED_SIDE;
  for (int64_t other = 0; other <= group; ++other) {
    const int64_t columns = other < group ? TURNED_SIDE : rows;
    add_square(gram_place(sums, 2 * group, 2 * other), TURNED_SIDE, rows, columns, other == group,
               d, out + first * d + other * TURNED_SIDE, out + other * TURNED_SIDE * d + first);
  }
}

/// Sets the sums to zero, all members together.
void clear_results(const GramScratch& scratch, Team& team) {
  const int64_t groups = scratch.padded / GRAM_GROUP;
  for (int64_t item; (item = team_take(team)) < 2 * groups;) {
    double* sums = scratch.sums[item % 2];
    const int64_t group = groups - 1 - item / 2;
    if (sums == nullptr) continue;
    const int64_t squares = group + 1;
    std::memset(gram_place(sums, 2 * group, 0), 0,
                squares * TURNED_SIDE * TURNED_SIDE * sizeof(double));
  }
  team_wait(team);
}

void add_results(const GramScratch& scratch, int64_t d, Team& team) {
  const int64_t groups = scratch.padded / GRAM_GROUP;
  for (int64_t item; (item = team_take(team)) < 2 * groups;) {
    const int64_t which = item % 2, group = groups - 1 - item / 2;
    if (scratch.sums[which] == nullptr) continue;
    add_symmetric(scratch.sums[which], group, d, scratch.outs[which]);
  }
}

}  // namespace

void gram_member(const RowsView& rows, const MaskView& mask, const GramScratch& scratch, Team& team,
                 int member) {
  const TileSession tiles;
  clear_results(scratch, team);
  if (rows.dtype == DType::f32) {
    run<float, GRAM_SINGLE.digits>(rows, mask, scratch, team, member);
  } else if (rows.dtype == DType::f16) {
    run<f16, GRAM_HALF.digits>(rows, mask, scratch, team, member);
  } else if (scratch.sums[0] == nullptr) {
    run_bf16<false, true>(rows, mask, scratch, team, member);
  } else if (scratch.sums[1] == nullptr) {
    run_bf16<true, false>(rows, mask, scratch, team, member);
  } else {
    run_bf16<true, true>(rows, mask, scratch, team, member);
  }
  team_wait(team);
  add_results(scratch, rows.d, team);
}

}  // namespace aniso::cpu::ANISO_ISA
