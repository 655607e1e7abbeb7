// The kernel of pair_histogram for processors with AMX. Cosines come off the matrix unit tile by
// tile, exact products of bfloat16 rows or of three digits per number (see gram.hpp), and go
// straight into the counters.
#include "cpu/pair_histogram_kernel.hpp"

#include "cpu/amx_digits.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

constexpr int DIGITS = 3;

// A number is cut into three digits of 8 bits, of 2¹⁶, 2⁸ and 1 units (a unit is 1.2e-7 of the
// row's largest number). |x̂₁| and |x̂₂| are the norms of a row's second and third digits, and its
// `rest` is p = max(|x̂₁|/2⁸, |x̂₂|). By Cauchy and Schwarz the products left out come to
//   six products (weights 0 to 2): at most |x̂₁||ŷ₂| + |x̂₂||ŷ₁| + |x̂₂||ŷ₂| <= 513 p q,
//   eight (weight 3 too): at most p q,
// and more are taken where that says more than 1e-6 or 3e-7. The rest of a cosine's error:
// roundings of float32, 5e-7 if all of them add up, and of the numbers to units, up or down at
// random (see dither): 2 exp(−2t²) is the chance that they carry one row's share of a cosine by t
// units, 2e-14 for 4 units, which are 5e-7 on a row that is all in one number and 7e-8 on 768
// normal ones.
constexpr float MOST_WITH_SIX = 1e-6f / 513;
constexpr float MOST_WITH_EIGHT = 3e-7f;

/// What is known of a packed row beside its numbers.
struct PackedRow {
  float scale;  // its first digits times this make a direction
  float rest;   // see MOST_WITH_SIX
};

/// 16 random numbers in [0, 1), the same for every row: floors of sums with them are roundings.
inline __m512 dither(int64_t k) {
  return _mm512_cvtepi32_ps(_mm512_srli_epi32(random_words(k), 8)) * _mm512_set1_ps(0x1p-24f);
}

/// How rows are packed and multiplied; T says which numbers they hold.
template <class T>
struct Packing {
  static constexpr int64_t STEP_COLUMNS = 64;
  static constexpr int64_t STEP_BYTES = DIGITS * TILE_BYTES;
  static constexpr int64_t SIDE = 1;
  typedef TileSums<DIGITS> Sums;

  /// Digits of one row into its place in a panel, step after step.
  static PackedRow pack(const T* row, int64_t d, int8_t* out) {
    const RowScale direction = direction_of(row, d);
    const __m512 up = _mm512_set1_ps(direction.exponent);
    __m512 largest = _mm512_setzero_ps();
    for (int64_t k = 0; k < d; k += 16) {
      const __m512 x = _mm512_abs_ps(load16(row + k, columns_from(k, d)));
      largest = _mm512_max_ps(largest, _mm512_scalef_ps(x, up));
    }
    // Units to a number; the largest number of three digits is 0x7f7f7f.
    const float most = _mm512_reduce_max_ps(largest);
    const float units = most > 0.0f ? 0x7f7f00 / most : 0.0f;
    __m512 squares[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t k = 0; k < d; k += 16) {
      const __m512 x = _mm512_scalef_ps(load16(row + k, columns_from(k, d)), up);
      const __m512 v = _mm512_floor_ps(_mm512_fmadd_ps(x, _mm512_set1_ps(units), dither(k)));
      const __m512i digits = cut(v, out + k / 64 * STEP_BYTES + k % 64);
      for (int i = 0; i < 2; ++i) {
        const __m512i shifted = _mm512_slli_epi32(digits, 16 + 8 * i);
        const __m512 digit = _mm512_cvtepi32_ps(_mm512_srai_epi32(shifted, 24));
        squares[i] = _mm512_fmadd_ps(digit, digit, squares[i]);
      }
    }
    if (units == 0.0f) return {0.0f, 0.0f};
    const double inverse = static_cast<double>(direction.inverse) + direction.inverse_low;
    const float last = _mm512_reduce_add_ps(squares[1]), middle = _mm512_reduce_add_ps(squares[0]);
    const double unit = inverse / units;
    return {static_cast<float>(0x1p16 * unit),
            static_cast<float>(unit * __builtin_sqrt(last > middle ? last : middle))};
  }

  /// Stores the digits of 16 whole numbers; returns them in the bytes of words.
  static __m512i cut(__m512 whole, int8_t* out) {
    const __m512i signs = _mm512_set1_epi32(0x808080);
    const __m512i v = _mm512_add_epi32(_mm512_cvtps_epi32(whole), signs);
    const __m512i digits = _mm512_xor_si512(v, signs);
    for (int digit = 0; digit < DIGITS; ++digit) {
      const __m512i byte = _mm512_srli_epi32(digits, 8 * (DIGITS - 1 - digit));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + digit * TILE_BYTES),
                       _mm512_cvtepi32_epi8(byte));
    }
    return digits;
  }

  /// Products of a panel and a panel of partners. step(run) is called for every step: it calls
  /// run(between), and between(k, count) comes after the k-th of `count` tile operations. With
  /// `back` the steps go from the last to the first: in turn with the other way, the tiles met last
  /// are still near for the next panel of partners.
  template <class Step>
  static inline __attribute__((always_inline)) void multiply(const int8_t* a, const int8_t* b,
                                                             int64_t, int64_t steps, float rest,
                                                             bool back, Sums (&sums)[1],
                                                             Step step) {
    if (rest <= MOST_WITH_SIX) {
      add<false>(a, b, steps, back, sums[0], step);
    } else {
      add<true>(a, b, steps, back, sums[0], step);
      move_up(sums[0][3], DIGIT_BITS, sums[0][2]);
      if (rest > MOST_WITH_EIGHT) add_last(a, b, steps, sums[0]);
    }
  }

  template <bool LAST, class Step>
  static inline __attribute__((always_inline)) void add(const int8_t* a, const int8_t* b,
                                                        int64_t steps, bool back, Sums& sums,
                                                        Step step) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    if constexpr (LAST) _tile_zero(3);
    for (int64_t k = 0; k < steps; ++k) {
      step([&](auto between) __attribute__((always_inline)) {
        const int64_t at = (back ? steps - 1 - k : k) * STEP_BYTES;
        add_step_of_three<LAST>(a + at, b + at, [&](int operation) __attribute__((always_inline)) {
          between(operation, OPERATIONS<DIGITS, LAST>);
        });
      });
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    if constexpr (LAST) _tile_stored(3, sums[3], 64);
  }

  /// Adds sums of a lighter weight, in units of a heavier one: all of a row stays within 32 bits.
  static void move_up(const int32_t (&light)[256], int bits, int32_t (&sum)[256]) {
    for (int k = 0; k < 256; ++k) sum[k] += light[k] >> bits;
  }

  /// Adds the products of last digits, of weight 4.
  static void add_last(const int8_t* a, const int8_t* b, int64_t steps, Sums& sums) {
    _tile_zero(0);
    for (int64_t step = 0; step < steps; ++step) {
      LOAD(6, a + step * STEP_BYTES, 2);
      STREAM(7, b + step * STEP_BYTES, 2);
      MULTIPLY(0, 6, 7);
    }
    _tile_stored(0, sums[3], 64);
    move_up(sums[3], 2 * DIGIT_BITS, sums[2]);
  }

  /// Of row k of the products, tile after tile: the row of a and the first partner, counted from
  /// those of the tiles, and its 16 sums.
  static uint32_t row_at(uint32_t k) { return k; }
  static uint32_t partner_at(uint32_t) { return 0; }
  static __m512 row_of(const Sums* sums, uint32_t k) {
    const auto sum = [&](int weight) { return _mm512_load_si512(sums[0][weight] + k * 16); };
    const __m512 light = _mm512_cvtepi32_ps(sum(2)), middle = _mm512_cvtepi32_ps(sum(1));
    const __m512 digit = _mm512_set1_ps(0x1p-8f);
    return (light * digit + middle) * digit + _mm512_cvtepi32_ps(sum(0));
  }
};

template <>
struct Packing<bf16> {
  static constexpr int64_t STEP_COLUMNS = 32;
  static constexpr int64_t STEP_BYTES = TILE_BYTES;
  static constexpr int64_t SIDE = 2;
  // The matrix unit adds in float32, where the roundings of equal products add up: of 1024 columns
  // to 7e-7 of their sum.
  static constexpr int64_t PART = 32;
  static constexpr int STEP_OPERATIONS = 8;
  typedef float Sums[256];

  static PackedRow pack(const bf16* row, int64_t d, int8_t* out) {
    for (int64_t k = 0; k < d; k += 32) {
      const int64_t left = d - k;
      const __mmask32 columns = left >= 32 ? ~0u : (1u << left) - 1;
      _mm512_storeu_si512(out + k / 32 * STEP_BYTES, _mm512_maskz_loadu_epi16(columns, row + k));
    }
    const RowScale direction = direction_of(row, d);
    const int exponent = static_cast<int>(direction.exponent);
    return {static_cast<float>(__builtin_scalbn(direction.inverse, exponent)), 0.0f};
  }

  /// Products of two panels and two panels of partners: see above. Sums round otherwise with
  /// `back`; it depends on a pair's place, not on the threads. Parts always go forwards.
  template <class Step>
  static inline __attribute__((always_inline)) void multiply(const int8_t* a, const int8_t* b,
                                                             int64_t panel, int64_t steps, float,
                                                             bool back, Sums (&sums)[4],
                                                             Step step) {
    for (int64_t first = 0; first < steps; first += PART) {
      const int64_t count = steps - first < PART ? steps - first : PART;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      const auto at_step = [&](int64_t k) {
        return (first + (back ? count - 1 - k : k)) * TILE_BYTES;
      };
      const int64_t at = at_step(0);
      LOAD_FROM(4, a + at);
      STREAM_FROM(6, b + at);
      STREAM_FROM(7, b + at + panel);
      LOAD_FROM(5, a + at + panel);
      for (int64_t k = 1; k <= count; ++k) {
        // Those of the next step are loaded in this one: where another thread runs on the core, a
        // product waits long for a tile just asked for.
        const int64_t next = at_step(k < count ? k : k - 1);
        step([&](auto between) __attribute__((always_inline)) {
          int operation = 0;
          const auto gap = [&]() __attribute__((always_inline)) {
            between(operation++, STEP_OPERATIONS);
          };
          MULTIPLY_BF16(0, 4, 6);
          MULTIPLY_BF16(1, 4, 7);
          LOAD_FROM(4, a + next);
          MULTIPLY_BF16(2, 5, 6);
          STREAM_FROM(6, b + next);
          MULTIPLY_BF16(3, 5, 7);
          STREAM_FROM(7, b + next + panel);
          LOAD_FROM(5, a + next + panel);
        });
      }
      if (first == 0) {
        store(sums);
      } else {
        alignas(64) Sums part[4];
        store(part);
        for (int tile = 0; tile < 4; ++tile) {
          for (int k = 0; k < 256; ++k) sums[tile][k] += part[tile][k];
        }
      }
    }
  }

  static void store(Sums (&sums)[4]) {
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
  }

  static uint32_t row_at(uint32_t k) {
    constexpr uint32_t PANEL = PAIR_PANEL;
    return k / (2 * PANEL) * PANEL + k % PANEL;
  }
  static uint32_t partner_at(uint32_t k) { return k & PAIR_PANEL; }
  static __m512 row_of(const Sums* sums, uint32_t k) {
    return _mm512_load_ps(reinterpret_cast<const float*>(sums) + k * 16);
  }
};

/// Where cosines go: private to a thread. Copied where many are counted, so that it stays in
/// registers.
class Counter {
 public:
  Counter(const PairPlan& plan, PairMember& member, double low, double high, int64_t bins)
      : plan_(&plan),
        member_(&member),
        bins_(bins),
        counters_(member.counters),
        some_outside_(low > -1.0 || high < 1.0),
        low_(_mm512_set1_ps(low > -1.0 ? static_cast<float>(low) : -__builtin_inff())),
        high_(_mm512_set1_ps(high < 1.0 ? static_cast<float>(high) : __builtin_inff())),
        last_(_mm512_set1_epi32(static_cast<int>(bins))),
        least_(_mm512_set1_ps(__builtin_inff())),
        largest_(_mm512_set1_ps(-__builtin_inff())) {
    const float per_unit = static_cast<float>(bins / (high - low));
    per_unit_ = _mm512_set1_ps(per_unit);
    // Of the rounded number of bins to a unit, so that low itself comes to lie at 1.
    start_ = _mm512_set1_ps(static_cast<float>(1.0 - low * per_unit));
    alignas(64) int32_t copies[16];
    for (int lane = 0; lane < 16; ++lane) copies[lane] = lane % plan.copies * plan.stride;
    copies_ = _mm512_load_si512(copies);
  }

  /// Takes note of the extremes of cosines that lie in bins and gives their counters, two to a
  /// word. Rounding may have carried them a little beyond 1.
  inline __attribute__((always_inline)) void place(__m512 cosine, uint64_t* at) {
    least_ = _mm512_min_ps(least_, cosine);
    largest_ = _mm512_max_ps(largest_, cosine);
    store(bin_of(cosine), at);
  }

  /// The same of those whose bit in `kept` is set, wherever they lie.
  inline __attribute__((always_inline)) void place_some(__m512 cosine, __mmask16 kept,
                                                        uint64_t* at) {
    least_ = _mm512_mask_min_ps(least_, kept, least_, cosine);
    largest_ = _mm512_mask_max_ps(largest_, kept, largest_, cosine);
    __m512i bin = bin_of(cosine);
    const auto set = [&](__mmask16 where, int64_t value) {
      bin = _mm512_mask_set1_epi32(bin, where, static_cast<int>(value));
    };
    set(_mm512_cmp_ps_mask(cosine, low_, _CMP_LT_OQ), 0);
    set(_mm512_cmp_ps_mask(cosine, high_, _CMP_GT_OQ), bins_ + 1);
    set(static_cast<__mmask16>(~kept), bins_ + 2);
    store(bin, at);
  }

  /// The counters of pairs that do not count.
  void place_none(uint64_t* at) const { store(_mm512_set1_epi32(static_cast<int>(bins_) + 2), at); }

  /// Whether cosines may lie outside of the bins.
  bool some_outside() const { return some_outside_; }

  /// Counts the two cosines of a word of counters.
  void count(uint64_t two) const {
    counters_[static_cast<uint32_t>(two)] += 1;
    counters_[two >> 32] += 1;
  }

  /// Moves the counters on to 64 bits.
  void settle() {
    for (int copy = 0; copy < plan_->copies; ++copy) {
      uint32_t* counters = counters_ + copy * plan_->stride;
      for (int64_t k = 0; k < bins_ + 2; ++k) member_->counts[k] += counters[k];
      for (int64_t k = 0; k < plan_->stride; ++k) counters[k] = 0;
    }
    const float least = _mm512_reduce_min_ps(least_), largest = _mm512_reduce_max_ps(largest_);
    member_->least = least < -1.0f ? -1.0f : least;
    member_->largest = largest > 1.0f ? 1.0f : largest;
  }

 private:
  /// The counters of cosines, all taken to lie in some bin: bin k is counter k + 1.
  __m512i bin_of(__m512 cosine) const {
    const __m512i bin = _mm512_cvttps_epi32(_mm512_fmadd_ps(cosine, per_unit_, start_));
    return _mm512_min_epi32(_mm512_max_epi32(bin, _mm512_set1_epi32(1)), last_);
  }

  void store(__m512i bin, uint64_t* at) const {
    _mm512_store_si512(at, _mm512_add_epi32(bin, copies_));
  }

  const PairPlan* plan_;
  PairMember* member_;
  int64_t bins_;
  uint32_t* counters_;
  bool some_outside_;
  __m512 low_, high_, per_unit_, start_;
  __m512i last_, copies_;
  __m512 least_, largest_;
};

template <class T>
class Pairs {
 public:
  Pairs(const RowsView& a, const RowsView* b, const PairScratch& scratch, Team& team, int member,
        Counter& counter)
      : a_(a),
        b_(b == nullptr ? a : *b),
        self_(b == nullptr),
        scratch_(scratch),
        plan_(scratch.plan),
        member_(scratch.members[member]),
        team_(team),
        counter_(counter),
        steps_((a.d + P::STEP_COLUMNS - 1) / P::STEP_COLUMNS),
        panel_(steps_ * P::STEP_BYTES) {}

  void run() {
    for (int64_t first = 0; first < a_.n; first += plan_.chunk_rows) {
      const int64_t count = least(plan_.chunk_rows, a_.n - first);
      const int64_t panels = (count + PAIR_GROUP - 1) / PAIR_GROUP * 2;
      for (int64_t panel; (panel = team_take(team_)) < panels;) {
        scratch_.chunk_rest[panel] =
            pack_panel(a_, first + panel * PAIR_PANEL, scratch_.chunk + panel * panel_,
                       scratch_.chunk_scale + panel * PAIR_PANEL);
      }
      team_wait(team_);
      // A row's partners are the rows before it, or all of b.
      const int64_t partners = self_ ? first + count : b_.n;
      for (int64_t block; (block = team_take(team_) * plan_.block_rows) < partners;) {
        add_block(first, count, block, least(plan_.block_rows, partners - block));
        counter_.settle();
      }
      team_wait(team_);
    }
  }

 private:
  typedef Packing<T> P;
  static constexpr int64_t TILES = P::SIDE * P::SIDE, SIDE = P::SIDE * PAIR_PANEL;
  static constexpr uint32_t ROWS = TILES * PAIR_PANEL;
  // Rows between the one that is placed and the one that is counted.
  static constexpr uint32_t LAG = 4;
  static_assert(ROWS % (2 * LAG) == 0, "the ring of places goes on from tiles to tiles");

  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  /// Rows [first, first + 16) of x; rows beyond the last are zero. Returns the largest `rest`.
  float pack_panel(const RowsView& x, int64_t first, int8_t* out, float* scales) const {
    float rest = 0.0f;
    for (int64_t i = 0; i < PAIR_PANEL; ++i) {
      int8_t* row = out + i * 64;
      if (first + i < x.n) {
        const T* source = static_cast<const T*>(x.data) + (first + i) * x.row_stride;
        clear_last_step(row);
        const PackedRow packed = P::pack(source, x.d, row);
        scales[i] = packed.scale;
        if (packed.rest > rest) rest = packed.rest;
      } else {
        for (int64_t at = 0; at < panel_; at += TILE_BYTES) {
          _mm512_storeu_si512(row + at, _mm512_setzero_si512());
        }
        scales[i] = 0.0f;
      }
    }
    return rest;
  }

  void clear_last_step(int8_t* row) const {
    for (int64_t at = panel_ - P::STEP_BYTES; at < panel_; at += TILE_BYTES) {
      _mm512_storeu_si512(row + at, _mm512_setzero_si512());
    }
  }

  /// The block's rows, transposed for the right side of a product.
  void pack_block(int64_t first, int64_t block, int64_t partners) {
    for (int64_t j = 0; j < partners; j += PAIR_PANEL) {
      int8_t* packed = member_.block + j / PAIR_PANEL * panel_;
      const int8_t* rows = packed;
      if (self_ && block + j >= first) {
        const int64_t in_chunk = block + j - first;
        rows = scratch_.chunk + in_chunk / PAIR_PANEL * panel_;
        _mm512_storeu_ps(member_.block_scale + j, _mm512_loadu_ps(scratch_.chunk_scale + in_chunk));
        member_.block_rest[j / PAIR_PANEL] = scratch_.chunk_rest[in_chunk / PAIR_PANEL];
      } else {
        member_.block_rest[j / PAIR_PANEL] =
            pack_panel(b_, block + j, packed, member_.block_scale + j);
      }
      for (int64_t at = 0; at < panel_; at += TILE_BYTES) transpose(rows + at, packed + at);
    }
    // GCC's tile loads do not name the memory they read.
    __asm__ volatile("" ::: "memory");
  }

  void add_block(int64_t first, int64_t count, int64_t block, int64_t partners) {
    pack_block(first, block, (partners + PAIR_GROUP - 1) / PAIR_GROUP * PAIR_GROUP);
    alignas(64) typename P::Sums sums[2][TILES];
    alignas(64) uint64_t places[2 * LAG][8];
    Backlog backlog(*this, counter_, places);
    int turn = 0;
    const int64_t begin = self_ && block > first ? (block - first) / SIDE * SIDE : 0;
    for (int64_t i = begin; i < count; i += SIDE) {
      const int64_t end = self_ ? least(partners, first + i - block + SIDE) : partners;
      const int8_t* rows = scratch_.chunk + i / PAIR_PANEL * panel_;
      // The next rows come nearer with every step.
      const int64_t bytes = P::SIDE * panel_;
      Prefetch ahead(rows + bytes, i + SIDE < count ? bytes : 0);
      const int64_t lines = bytes / 64 / ((end + SIDE - 1) / SIDE * steps_) + 1;
      for (int64_t j = 0; j < end; j += SIDE, turn ^= 1) {
        const float rest = scratch_.chunk_rest[i / PAIR_PANEL] * member_.block_rest[j / PAIR_PANEL];
        const int8_t* partners_at = member_.block + j / PAIR_PANEL * panel_;
        P::multiply(rows, partners_at, panel_, steps_, rest, turn, sums[turn],
                    [&](auto run) __attribute__((always_inline)) {
                      ahead.lines(lines);
                      backlog.beside(run);
                    });
        backlog.next({sums[turn], scratch_.chunk_scale + i, member_.block_scale + j, first + i,
                      block + j, whole(first + i, block + j) && !counter_.some_outside()});
      }
    }
    counter_ = backlog.finish();
  }

  /// Tiles multiplied together.
  struct Tiles {
    const typename P::Sums* sums;
    const float *row_scales, *partner_scales;
    int64_t row, partner;  // the first ones, in a and b
    bool all;              // every product is that of a pair, in some bin
  };

  /// Places and counts the rows of tiles while the next ones are multiplied: some increments after
  /// every tile operation, because a core shared with another thread looks ahead over little more
  /// than one or two. A row is counted LAG rows after it is placed: no increment waits for that.
  class Backlog {
   public:
    Backlog(const Pairs& pairs, const Counter& counter, uint64_t (&places)[2 * LAG][8])
        : pairs_(pairs), counter_(counter), places_(places) {
      for (auto& place : places) counter_.place_none(place);
    }

    /// Places what is left of the tiles before, and takes up these.
    void next(const Tiles& tiles) {
      while (row_ < ROWS) pass_row();
      tiles_ = tiles;
      row_ = 0;
      due_ = 0;
    }

    /// Counts what is left.
    Counter finish() {
      while (row_ < ROWS) pass_row();
      for (uint32_t row = 0; row < LAG; ++row) {
        for (int k = 0; k < 8; ++k) counter_.count(counted(row)[k]);
      }
      return counter_;
    }

    /// Calls run(between), a step of a product, and passes its share of rows in between.
    template <class Run>
    inline __attribute__((always_inline)) void beside(Run run) {
      uint32_t rows = 0;
      for (due_ += ROWS; due_ >= pairs_.steps_; due_ -= pairs_.steps_) ++rows;
      if (rows > ROWS - row_) rows = ROWS - row_;
      for (; rows > 4; --rows) pass_row();
      switch (rows) {
        case 0:
          return pass_beside<0>(run);
        case 1:
          return pass_beside<1>(run);
        case 2:
          return pass_beside<2>(run);
        case 3:
          return pass_beside<3>(run);
        default:
          return pass_beside<4>(run);
      }
    }

   private:
    template <int R, class Run>
    inline __attribute__((always_inline)) void pass_beside(Run run) {
      static_assert(R <= LAG);
      const uint64_t* at[R > 0 ? R : 1];
#pragma GCC unroll 4
      for (int row = 0; row < R; ++row) {
        at[row] = counted(row_);
        place_row();
      }
      run([&](int operation, int count) __attribute__((always_inline)) {
        const int begin = operation * 8 * R / count, end = (operation + 1) * 8 * R / count;
        if (begin == end) gap();
#pragma GCC unroll 8
        for (int k = begin; k < end; ++k) counter_.count(at[k / 8][k % 8]);
      });
    }

    inline __attribute__((always_inline)) void pass_row() {
      pass_beside<1>([](auto between) __attribute__((always_inline)) { between(0, 1); });
    }

    inline __attribute__((always_inline)) void place_row() {
      const uint32_t row = P::row_at(row_), partner = P::partner_at(row_);
      const __m512 scale =
          _mm512_set1_ps(tiles_.row_scales[row]) * _mm512_loadu_ps(tiles_.partner_scales + partner);
      const __m512 cosine = P::row_of(tiles_.sums, row_) * scale;
      uint64_t* at = places_[row_ % (2 * LAG)];
      if (tiles_.all) {
        counter_.place(cosine, at);
      } else {
        counter_.place_some(cosine, pairs_.partners_of(tiles_.row + row, tiles_.partner + partner),
                            at);
      }
      ++row_;
    }

    /// The places of the row to count when row k is placed.
    const uint64_t* counted(uint32_t k) const { return places_[(k + LAG) % (2 * LAG)]; }

    const Pairs& pairs_;
    Counter counter_;
    // Counters of the last rows. Elsewhere, so that the members here stay in registers.
    uint64_t (&places_)[2 * LAG][8];
    Tiles tiles_{};
    uint32_t row_ = ROWS;  // the next one to place
    int64_t due_ = 0;      // what is left of the share of a step, times the steps
  };

  bool whole(int64_t i, int64_t partner) const {
    return i + SIDE <= a_.n && partner + SIDE <= (self_ ? i : b_.n);
  }

  /// Which of 16 partners from `first` on form a pair with row i.
  __mmask16 partners_of(int64_t i, int64_t first) const {
    const int64_t end = self_ ? i : b_.n;
    const int64_t left = i < a_.n ? end - first : 0;
    return left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
  }

  const RowsView a_, b_;
  bool self_;
  const PairScratch& scratch_;
  const PairPlan& plan_;
  PairMember& member_;
  Team& team_;
  Counter& counter_;
  int64_t steps_;
  int64_t panel_;  // bytes
};

template <class T>
void run(const RowsView& a, const RowsView* b, const PairScratch& scratch, Team& team, int member,
         Counter& counter) {
  Pairs<T>(a, b, scratch, team, member, counter).run();
}

}  // namespace

void pair_histogram_member(const RowsView& a, const RowsView* b, double low, double high,
                           int64_t bins, const PairScratch& scratch, Team& team, int member) {
  const TileSession tiles;
  Counter counter(scratch.plan, scratch.members[member], low, high, bins);
  if (a.dtype == DType::bf16) {
    run<bf16>(a, b, scratch, team, member, counter);
  } else if (a.dtype == DType::f16) {
    run<f16>(a, b, scratch, team, member, counter);
  } else {
    run<float>(a, b, scratch, team, member, counter);
  }
  counter.settle();
}

}  // namespace aniso::cpu::ANISO_ISA
