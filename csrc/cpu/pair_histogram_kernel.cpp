// The kernel of pair_histogram for processors with AMX. Cosines come off the matrix unit tile by
// tile, exact products of bfloat16 rows or of three digits per number (see gram.hpp), and go
// straight into the counters.
#include "cpu/pair_histogram_kernel.hpp"

#include "cpu/amx_digits.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

constexpr int DIGITS = 3;

/// How rows are packed and multiplied; T says which numbers they hold.
template <class T>
struct Packing {
  static constexpr int64_t STEP_COLUMNS = 64;
  static constexpr int64_t STEP_BYTES = DIGITS * TILE_BYTES;
  static constexpr int64_t SIDE = 1;
  typedef TileSums<DIGITS> Sums;

  /// Digits of one row into its place in a panel, step after step; returns its scale.
  static float pack(const T* row, int64_t d, int8_t* out) {
    const RowScale direction = direction_of(row, d);
    const __m512 up = _mm512_set1_ps(direction.exponent);
    const __m512 inverse = _mm512_set1_ps(direction.inverse);
    __m512 largest = _mm512_setzero_ps();
    for (int64_t k = 0; k < d; k += 16) {
      const __m512 x = _mm512_abs_ps(load16(row + k, columns_from(k, d)));
      largest = _mm512_max_ps(largest, _mm512_scalef_ps(x, up) * inverse);
    }
    // 0x7f7f7f, the largest number of three digits, is 0.996 · 2²³.
    const int exponent = 22 - __builtin_ilogb(_mm512_reduce_max_ps(largest) * 1.005);
    for (int64_t k = 0; k < d; k += 16) {
      const __m512 x = _mm512_scalef_ps(load16(row + k, columns_from(k, d)), up) * inverse;
      const __m512i signs = _mm512_set1_epi32(0x808080);
      __m512i v = _mm512_cvtps_epi32(_mm512_scalef_ps(x, _mm512_set1_ps(exponent)));
      v = _mm512_xor_si512(_mm512_add_epi32(v, signs), signs);
      int8_t* at = out + k / 64 * STEP_BYTES + k % 64;
      for (int digit = 0; digit < DIGITS; ++digit) {
        const __m512i byte = _mm512_srli_epi32(v, 8 * (DIGITS - 1 - digit));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at + digit * TILE_BYTES),
                         _mm512_cvtepi32_epi8(byte));
      }
    }
    return static_cast<float>(__builtin_scalbn(1.0, 16 - exponent));
  }

  /// Products of a panel and a panel of partners; calls between() STOPS times a step.
  static constexpr int64_t STOPS = 3;
  template <class Between>
  static void multiply(const int8_t* a, const int8_t* b, int64_t, int64_t steps, Sums (&sums)[1],
                       Between between) {
    add_products<DIGITS>(a, b, steps, sums[0], between);
  }

  static __m512 row_of(const Sums& sums, int i) {
    __m512 total = _mm512_setzero_ps();
    for (int weight = DIGITS; weight >= 0; --weight) {
      const __m512 product = _mm512_cvtepi32_ps(_mm512_load_si512(&sums[weight][16 * i]));
      total = _mm512_fmadd_ps(total, _mm512_set1_ps(0x1p-8f), product);
    }
    return total;
  }
};

template <>
struct Packing<bf16> {
  static constexpr int64_t STEP_COLUMNS = 32;
  static constexpr int64_t STEP_BYTES = TILE_BYTES;
  static constexpr int64_t SIDE = 2;
  typedef float Sums[256];

  static float pack(const bf16* row, int64_t d, int8_t* out) {
    for (int64_t k = 0; k < d; k += 32) {
      const int64_t left = d - k;
      const __mmask32 columns = left >= 32 ? ~0u : (1u << left) - 1;
      _mm512_storeu_si512(out + k / 32 * STEP_BYTES, _mm512_maskz_loadu_epi16(columns, row + k));
    }
    const RowScale direction = direction_of(row, d);
    const int exponent = static_cast<int>(direction.exponent);
    return static_cast<float>(__builtin_scalbn(direction.inverse, exponent));
  }

  /// Products of two panels and two panels of partners; calls between() STOPS times a step.
  static constexpr int64_t STOPS = 1;
  template <class Between>
  static void multiply(const int8_t* a, const int8_t* b, int64_t panel, int64_t steps,
                       Sums (&sums)[4], Between between) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t at = 0; at < steps * TILE_BYTES; at += TILE_BYTES) {
      _tile_loadd(4, a + at, 64);
      _tile_loadd(6, b + at, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, a + at + panel, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, b + at + panel, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
      between();
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
  }

  static __m512 row_of(const Sums& sums, int i) { return _mm512_load_ps(&sums[16 * i]); }
};

/// Where cosines go: private to a thread.
class Counter {
 public:
  Counter(const PairPlan& plan, PairMember& member, double low, double high, int64_t bins)
      : plan_(plan),
        member_(member),
        bins_(bins),
        some_outside_(low > -1.0 || high < 1.0),
        low_(_mm512_set1_ps(static_cast<float>(low))),
        high_(_mm512_set1_ps(static_cast<float>(high))),
        per_unit_(_mm512_set1_ps(static_cast<float>(bins / (high - low)))),
        least_(_mm512_set1_ps(__builtin_inff())),
        largest_(_mm512_set1_ps(-__builtin_inff())) {
    for (int lane = 0; lane < 16; ++lane) copies_[lane] = lane % plan.copies * plan.stride;
  }

  /// Counts the cosines whose bit in `kept` is set.
  void add(__m512 cosine, __mmask16 kept) {
    const __m512 one = _mm512_set1_ps(1.0f);
    cosine = _mm512_max_ps(_mm512_min_ps(cosine, one), _mm512_sub_ps(_mm512_setzero_ps(), one));
    least_ = _mm512_mask_min_ps(least_, kept, least_, cosine);
    largest_ = _mm512_mask_max_ps(largest_, kept, largest_, cosine);
    const __m512i last = _mm512_set1_epi32(static_cast<int>(bins_));
    // Bin k is counter k + 1: what lies below low by less than a bin truncates to 0.
    __m512i bin = _mm512_cvttps_epi32((cosine - low_) * per_unit_ + one);
    bin = _mm512_min_epi32(_mm512_max_epi32(bin, _mm512_setzero_si512()), last);
    if (some_outside_) bin = move_outside(cosine, bin);
    if (kept != 0xffff) {
      bin = _mm512_mask_set1_epi32(bin, static_cast<__mmask16>(~kept), static_cast<int>(bins_) + 2);
    }
    alignas(64) int32_t at[16];
    _mm512_store_si512(at, _mm512_add_epi32(bin, _mm512_load_si512(copies_)));
#pragma GCC unroll 16
    for (int lane = 0; lane < 16; ++lane) member_.counters[at[lane]] += 1;
  }

  /// Moves the counters on to 64 bits.
  void settle() {
    for (int copy = 0; copy < plan_.copies; ++copy) {
      uint32_t* counters = member_.counters + copy * plan_.stride;
      for (int64_t k = 0; k < bins_ + 2; ++k) member_.counts[k] += counters[k];
      for (int64_t k = 0; k < plan_.stride; ++k) counters[k] = 0;
    }
    member_.least = _mm512_reduce_min_ps(least_);
    member_.largest = _mm512_reduce_max_ps(largest_);
  }

 private:
  /// The counters of cosines below low and above high.
  __m512i move_outside(__m512 cosine, __m512i bin) const {
    const __mmask16 below = _mm512_cmp_ps_mask(cosine, low_, _CMP_LT_OQ);
    const __mmask16 above = _mm512_cmp_ps_mask(cosine, high_, _CMP_GT_OQ);
    bin = _mm512_mask_set1_epi32(bin, below, 0);
    return _mm512_mask_set1_epi32(bin, above, static_cast<int>(bins_) + 1);
  }

  const PairPlan& plan_;
  PairMember& member_;
  int64_t bins_;
  bool some_outside_;
  __m512 low_, high_, per_unit_, least_, largest_;
  alignas(64) int32_t copies_[16];
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

  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  /// Rows [first, first + 16) of x; rows beyond the last are zero.
  void pack_panel(const RowsView& x, int64_t first, int8_t* out, float* scales) const {
    for (int64_t i = 0; i < PAIR_PANEL; ++i) {
      int8_t* row = out + i * 64;
      if (first + i < x.n) {
        const T* source = static_cast<const T*>(x.data) + (first + i) * x.row_stride;
        clear_last_step(row);
        scales[i] = P::pack(source, x.d, row);
      } else {
        for (int64_t at = 0; at < panel_; at += TILE_BYTES) {
          _mm512_storeu_si512(row + at, _mm512_setzero_si512());
        }
        scales[i] = 0.0f;
      }
    }
  }

  void clear_last_step(int8_t* row) const {
    for (int64_t at = panel_ - P::STEP_BYTES; at < panel_; at += TILE_BYTES) {
      _mm512_storeu_si512(row + at, _mm512_setzero_si512());
    }
  }

  void add_block(int64_t first, int64_t count, int64_t block, int64_t partners) {
    const int64_t panels = (partners + PAIR_GROUP - 1) / PAIR_GROUP * 2;
    for (int64_t panel = 0; panel < panels; ++panel) {
      int8_t* packed = member_.block + panel * panel_;
      pack_panel(b_, block + panel * PAIR_PANEL, packed, member_.block_scale + panel * PAIR_PANEL);
      for (int64_t at = 0; at < panel_; at += TILE_BYTES) transpose(packed + at, packed + at);
    }
    alignas(64) typename P::Sums sums[2][TILES];
    Counting before{};
    int turn = 0;
    for (int64_t i = 0; i < count; i += SIDE) {
      const int64_t end = self_ ? least(partners, first + i - block + 1) : partners;
      for (int64_t j = 0; j < end; j += SIDE, turn ^= 1) {
        P::multiply(scratch_.chunk + i / PAIR_PANEL * panel_,
                    member_.block + j / PAIR_PANEL * panel_, panel_, steps_, sums[turn],
                    [&] { count_rows(before, rows_between()); });
        count_rows(before, TILES * PAIR_PANEL);
        before = {sums[turn], i, j, first + i, block + j, 0};
      }
    }
    count_rows(before, TILES * PAIR_PANEL);
  }

  /// Tiles multiplied together, counted row by row while the next ones are multiplied.
  struct Counting {
    const typename P::Sums* sums;
    int64_t row, partner;              // places in the chunk and in the block
    int64_t first_row, first_partner;  // and in a and b
    int64_t next;
  };

  /// Rows to count at each stop of a multiplication.
  int64_t rows_between() const {
    const int64_t stops = P::STOPS * steps_;
    return (TILES * PAIR_PANEL + stops - 1) / stops;
  }

  void count_rows(Counting& tiles, int64_t rows) {
    if (tiles.sums == nullptr) return;
    const int64_t end = least(tiles.next + rows, TILES * PAIR_PANEL);
    for (; tiles.next < end; ++tiles.next) {
      const int64_t tile = tiles.next / PAIR_PANEL, r = tiles.next % PAIR_PANEL;
      const int64_t row = tile / P::SIDE * PAIR_PANEL + r, partner = tile % P::SIDE * PAIR_PANEL;
      const __m512 scale = _mm512_set1_ps(scratch_.chunk_scale[tiles.row + row]) *
                           _mm512_loadu_ps(member_.block_scale + tiles.partner + partner);
      counter_.add(P::row_of(tiles.sums[tile], static_cast<int>(r)) * scale,
                   partners_of(tiles.first_row + row, tiles.first_partner + partner));
    }
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
