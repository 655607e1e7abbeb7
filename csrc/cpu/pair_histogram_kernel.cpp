// The kernel of pair_histogram for processors with AMX. Cosines come off the matrix unit tile by
// tile, exact products of bfloat16 rows or of three digits per number (see gram.hpp), and go
// straight into the counters.
#include "cpu/pair_histogram_kernel.hpp"

#include "cpu/amx_digits.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

constexpr int DIGITS = 3;

// One step of products of three digits: i and j have weight i + j, and those beyond weight 2 are
// left out. Sums 0: weight 0; 1 and 2: weight 1; 3 and 4: weight 2, taking turns so that none waits
// for the one before.
#define ADD_DIGITS(even, odd)             \
  _tile_loadd(6, a + 2 * TILE_BYTES, 64); \
  _tile_loadd(7, b, 64);                  \
  _tile_dpbssd(even, 6, 7);               \
  _tile_loadd(6, a + TILE_BYTES, 64);     \
  _tile_dpbssd(1, 6, 7);                  \
  between();                              \
  _tile_loadd(5, b + TILE_BYTES, 64);     \
  _tile_dpbssd(odd, 6, 5);                \
  _tile_loadd(6, a, 64);                  \
  _tile_dpbssd(0, 6, 7);                  \
  between();                              \
  _tile_dpbssd(2, 6, 5);                  \
  _tile_loadd(7, b + 2 * TILE_BYTES, 64); \
  _tile_dpbssd(even, 6, 7);               \
  between();                              \
  a += STEP_BYTES;                        \
  b += STEP_BYTES

/// How rows are packed and multiplied; T says which numbers they hold.
template <class T>
struct Packing {
  static constexpr int64_t STEP_COLUMNS = 64;
  static constexpr int64_t STEP_BYTES = DIGITS * TILE_BYTES;
  static constexpr int64_t SIDE = 1;
  typedef int32_t Sums[5][256];

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
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    int64_t step = 0;
    for (; step + 2 <= steps; step += 2) {
      ADD_DIGITS(3, 4);
      ADD_DIGITS(4, 3);
    }
    if (step < steps) {
      ADD_DIGITS(3, 4);
    }
    _tile_stored(0, sums[0][0], 64);
    _tile_stored(1, sums[0][1], 64);
    _tile_stored(2, sums[0][2], 64);
    _tile_stored(3, sums[0][3], 64);
    _tile_stored(4, sums[0][4], 64);
  }

  static __m512 row_of(const Sums* sums, int64_t row) {
    const int32_t* at = sums[row / PAIR_PANEL][0] + row % PAIR_PANEL * 16;
    const auto sum = [&](int k) { return _mm512_load_si512(at + 256 * k); };
    const __m512 light = _mm512_cvtepi32_ps(_mm512_add_epi32(sum(3), sum(4)));
    const __m512 middle = _mm512_cvtepi32_ps(_mm512_add_epi32(sum(1), sum(2)));
    const __m512 digit = _mm512_set1_ps(0x1p-8f);
    return (light * digit + middle) * digit + _mm512_cvtepi32_ps(sum(0));
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
  static constexpr int64_t STOPS = 2;
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
      between();
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

  static __m512 row_of(const Sums* sums, int64_t row) { return _mm512_load_ps(sums[0] + row * 16); }
};

/// Where cosines go: private to a thread.
class Counter {
 public:
  Counter(const PairPlan& plan, PairMember& member, double low, double high, int64_t bins)
      : plan_(plan),
        member_(member),
        bins_(bins),
        counters_(member.counters),
        some_outside_(low > -1.0 || high < 1.0),
        low_(_mm512_set1_ps(low > -1.0 ? static_cast<float>(low) : -__builtin_inff())),
        high_(_mm512_set1_ps(high < 1.0 ? static_cast<float>(high) : __builtin_inff())),
        least_(_mm512_set1_ps(__builtin_inff())),
        largest_(_mm512_set1_ps(-__builtin_inff())) {
    const float per_unit = static_cast<float>(bins / (high - low));
    per_unit_ = _mm512_set1_ps(per_unit);
    // Of the rounded number of bins to a unit, so that low itself comes to lie at 1.
    start_ = _mm512_set1_ps(static_cast<float>(1.0 - low * per_unit));
    for (int lane = 0; lane < 16; ++lane) copies_[lane] = lane % plan.copies * plan.stride;
  }

  /// Counts cosines: all of them, or those whose bit in `kept` is set. Rounding may have carried
  /// them a little beyond 1.
  template <bool ALL>
  void add(__m512 cosine, __mmask16 kept) {
    least_ = _mm512_mask_min_ps(least_, ALL ? 0xffff : kept, least_, cosine);
    largest_ = _mm512_mask_max_ps(largest_, ALL ? 0xffff : kept, largest_, cosine);
    const __m512i last = _mm512_set1_epi32(static_cast<int>(bins_));
    // Bin k is counter k + 1.
    __m512i bin = _mm512_cvttps_epi32(_mm512_fmadd_ps(cosine, per_unit_, start_));
    bin = _mm512_min_epi32(_mm512_max_epi32(bin, _mm512_set1_epi32(1)), last);
    if (some_outside_) bin = move_outside(cosine, bin);
    if (!ALL) {
      bin = _mm512_mask_set1_epi32(bin, static_cast<__mmask16>(~kept), static_cast<int>(bins_) + 2);
    }
    alignas(64) uint64_t at[8];  // two at a time
    _mm512_store_si512(at, _mm512_add_epi32(bin, _mm512_load_si512(copies_)));
#pragma GCC unroll 8
    for (int pair = 0; pair < 8; ++pair) {
      counters_[static_cast<uint32_t>(at[pair])] += 1;
      counters_[at[pair] >> 32] += 1;
    }
  }

  /// Moves the counters on to 64 bits.
  void settle() {
    for (int copy = 0; copy < plan_.copies; ++copy) {
      uint32_t* counters = member_.counters + copy * plan_.stride;
      for (int64_t k = 0; k < bins_ + 2; ++k) member_.counts[k] += counters[k];
      for (int64_t k = 0; k < plan_.stride; ++k) counters[k] = 0;
    }
    const float least = _mm512_reduce_min_ps(least_), largest = _mm512_reduce_max_ps(largest_);
    member_.least = least < -1.0f ? -1.0f : least;
    member_.largest = largest > 1.0f ? 1.0f : largest;
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
  uint32_t* counters_;
  bool some_outside_;
  __m512 low_, high_, per_unit_, start_, least_, largest_;
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
        stops_(P::STOPS * steps_),
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
  static constexpr int64_t ROWS = TILES * PAIR_PANEL;

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

  /// The block's rows, transposed for the right side of a product.
  void pack_block(int64_t first, int64_t block, int64_t partners) {
    for (int64_t j = 0; j < partners; j += PAIR_PANEL) {
      int8_t* packed = member_.block + j / PAIR_PANEL * panel_;
      const int8_t* rows = packed;
      if (self_ && block + j >= first) {
        const int64_t in_chunk = block + j - first;
        rows = scratch_.chunk + in_chunk / PAIR_PANEL * panel_;
        _mm512_storeu_ps(member_.block_scale + j, _mm512_loadu_ps(scratch_.chunk_scale + in_chunk));
      } else {
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
    Counting before{sums[1], 0, 0, 0, 0, true, ROWS};
    int turn = 0;
    const int64_t begin = self_ && block > first ? (block - first) / SIDE * SIDE : 0;
    for (int64_t i = begin; i < count; i += SIDE) {
      const int64_t end = self_ ? least(partners, first + i - block + SIDE) : partners;
      const int8_t* rows = scratch_.chunk + i / PAIR_PANEL * panel_;
      Ahead ahead(rows, P::SIDE * panel_, stops_ * ((end + SIDE - 1) / SIDE));
      for (int64_t j = 0; j < end; j += SIDE, turn ^= 1) {
        int64_t due = 0;
        P::multiply(rows, member_.block + j / PAIR_PANEL * panel_, panel_, steps_, sums[turn], [&] {
          for (due += ROWS; due >= stops_; due -= stops_) count_row(before);
          ahead.fetch();
        });
        before = {sums[turn], i, j, first + i, block + j, whole(first + i, block + j), 0};
      }
    }
    while (before.next < ROWS) count_row(before);
  }

  /// Brings the next rows of the chunk into the second-level cache, a few lines at a time.
  class Ahead {
   public:
    Ahead(const int8_t* rows, int64_t bytes, int64_t stops)
        : at_(rows + bytes), end_(rows + 2 * bytes), lines_((bytes / 64 + stops - 1) / stops) {}
    void fetch() {
      for (int64_t line = 0; line < lines_ && at_ < end_; ++line, at_ += 64) {
        _mm_prefetch(at_, _MM_HINT_T1);
      }
    }

   private:
    const int8_t *at_, *end_;
    int64_t lines_;
  };

  /// Tiles multiplied together, counted row by row while the next ones are multiplied.
  struct Counting {
    const typename P::Sums* sums;
    int64_t row, partner;              // places in the chunk and in the block
    int64_t first_row, first_partner;  // and in a and b
    bool whole;                        // every product is that of a pair
    int64_t next;
  };

  void count_row(Counting& tiles) {
    if (tiles.next == ROWS) return;
    const int64_t tile = tiles.next / PAIR_PANEL, in_tile = tiles.next % PAIR_PANEL;
    const int64_t row = tile / P::SIDE * PAIR_PANEL + in_tile;
    const int64_t partner = tile % P::SIDE * PAIR_PANEL;
    const __m512 scale = _mm512_set1_ps(scratch_.chunk_scale[tiles.row + row]) *
                         _mm512_loadu_ps(member_.block_scale + tiles.partner + partner);
    const __m512 cosine = P::row_of(tiles.sums, tiles.next) * scale;
    if (tiles.whole) {
      counter_.template add<true>(cosine, 0xffff);
    } else {
      counter_.template add<false>(
          cosine, partners_of(tiles.first_row + row, tiles.first_partner + partner));
    }
    ++tiles.next;
  }

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
  int64_t stops_;  // of a product, for counting
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
