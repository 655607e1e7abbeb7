// The kernel of pair_histogram for processors with AMX. Cosines come off the matrix unit tile by
// tile, exact products of packed rows (see pair_histogram_packing.hpp), and go straight into the
// counters.
#include "cpu/pair_histogram_kernel.hpp"

#include "cpu/pair_histogram_packing.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

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
