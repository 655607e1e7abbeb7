// One matrix of batched_svd by one team, its short side as rows: A = p × q, p <= q. Eigenvalues of
// the rows' Gram matrix and, where vectors are asked, its eigenvectors Z; the rows of B = Z A are
// then σᵢ vᵢ. Matrices that this leaves in doubt are marked SVD_FAILED: a second run refines those
// with small values; where values are not told apart the caller takes another solver.
#pragma once

#include "cuda/batched_svd_results.hpp"
#include "cuda/batched_svd_rotation.hpp"

namespace aniso::svd {

/// Values below this share of the largest are refined: the Gram matrix leaves them 1e-10 or more of
/// the largest in doubt.
constexpr double kRefineBelow = 4e-6;
/// ... and so are their neighbours up to this share, from which they must be told apart.
constexpr double kTailBelow = 1e-4;
/// Rows of B shorter than this share of ‖A‖_F are what rounding left.
constexpr double kNoise = 1e-15;

/// Factorises matrices of orders up to kMost with one team; every method is called by all of it.
/// kNear: the Gram matrix lies with the stage, not in the workspace, and is reduced in one stage.
template <int kMost, bool kNear, class Team>
class Factorization {
 public:
  /// The team's memory has own_doubles(kMost, p, kWarps, kNear); slot: which workspace.
  ANISO_PHASE Factorization(const Team& team, const Job& job, int64_t slot)
      : team_(team),
        job_(job),
        p_(job.p),
        q_(job.q),
        k_(job.k),
        wide_(job.x.m <= job.x.n),
        far_(job.workspace + slot * job.workspace_doubles) {}

  /// The matrix at hand.
  ANISO_PHASE int64_t index() const { return index_; }

  ANISO_PHASE void run(int64_t index) {
    index_ = index;
    const int64_t size = bytes_of(job_.x.dtype);
    a_ = {static_cast<const char*>(job_.x.data) + index * job_.x.batch_stride * size, job_.x.dtype,
          wide_ ? job_.x.row_stride : job_.x.column_stride,
          wide_ ? job_.x.column_stride : job_.x.row_stride};
    n_ = p_;
    count_ = k_;
    method_ = SVD_GRAM;
    if (job_.rotate) load();
    if (!(job_.rotate ? accumulate_loaded() : accumulate())) return mark(SVD_NOT_FINITE);
    if (job_.rotate) return mark(turn_until_orthogonal() ? finish() : SVD_FAILED);
    find_values();
    if (job_.refine) return mark(refine() ? finish() : SVD_FAILED);
    if (heads() < n_) return mark(SVD_FAILED);
    if (job_.out.left == nullptr) return write_values();
    if (!(spectrum().values()[0] > 0.0) || !find_vectors(z(), p_)) return mark(SVD_FAILED);
    set_rows();
    mark(finish());
  }

 private:
  /// Found again by every phase: that its memory is the team's must be plain to the compiler.
  ANISO_PHASE Spectrum spectrum() const {
    double* stage = team_.memory() + spectrum_doubles(p_);
    return {n_, kNear ? stage + kStage : far_, team_.memory(), stage};
  }

  // ---- the Gram matrix ----

  /// Rows of the Gram matrix as stored.
  ANISO_PHASE int width() const { return kNear ? n_ : whole_blocks(n_); }

  ANISO_APART void find_values() {
    reduce();
    bisect();
  }
  ANISO_APART void bisect() {
    spread_ = split(team_, spectrum());
    Bisection<Team>(team_, spectrum()).run(count_);
  }

  /// How many of the values found are told apart from rounding and from those that are not; all
  /// where none is so small.
  ANISO_PHASE int heads() const {
    const double *values = spectrum().values(), largest = values[0];
    if (!(values[count_ - 1] < kRefineBelow * kRefineBelow * largest)) return n_;
    int heads = 0;
    while (values[heads] >= kTailBelow * kTailBelow * largest) ++heads;
    return heads;
  }

  ANISO_PHASE void reduce() {
    if constexpr (kNear) {
      reduce_at_once();
    } else {
      reduce_to_band();
      chase_bulges();
    }
  }
  ANISO_APART void reduce_at_once() { Reduction<Team>(team_, spectrum()).run(); }

  ANISO_APART void reduce_to_band() const {
    for (int first = 0;; first += kBand) {
      open_rows(first);
      if (first + kBand >= width()) return;
      factor_rows(first);
      multiply_rows(first);
      settle_rows(first);
    }
  }
  ANISO_PHASE BandReduction<kMost, Team> rows_from(int first) const {
    return {team_, spectrum(), band(), first};
  }
  ANISO_APART void open_rows(int first) const {
    auto rows = rows_from(first);
    first == 0 ? rows.clear() : rows.refresh();
    rows.keep_diagonal();
  }
  ANISO_APART void factor_rows(int first) const { rows_from(first).factor(); }
  ANISO_APART void multiply_rows(int first) const { rows_from(first).pass(); }
  ANISO_APART void settle_rows(int first) const { rows_from(first).set_w(); }

  ANISO_APART void chase_bulges() {
    double* kept = job_.out.left != nullptr || job_.refine || job_.rotate ? chased() : nullptr;
    BulgeChase<Team>(team_, spectrum(), band(), kept).run();
  }

  /// A Aᵀ brought to a trace of about 1; false where it is not finite. Products of single precision
  /// neither overflow nor vanish in float64.
  ANISO_APART bool accumulate() {
    lifted_ = 0;
    return settle(set_gram(RowsOfA{a_, a_.inner == 1}));
  }
  /// ... of the rows that load() left.
  ANISO_PHASE bool accumulate_loaded() { return settle(accumulate_rows(loaded())); }
  /// ... of n_ rows in memory; its trace before.
  ANISO_APART double accumulate_rows(const double* rows) { return set_gram(RowsOf{rows, q_}); }

  ANISO_PHASE bool settle(double trace) {
    norm_ = sqrt(scalbn(trace, -2 * scaled_));
    exponent_ = lifted_ + scaled_;
    return trace <= DBL_MAX;
  }

  /// The Gram matrix of n_ rows over 4^scaled_, which brings it to a trace of about 1; its trace.
  template <class Rows>
  ANISO_PHASE double set_gram(const Rows& rows) {
    double* gram = spectrum().gram;
    const int n = n_, stride = width();
    for (int e = team_.thread(); stride > n && e < stride * stride; e += team_.threads()) {
      if (e / stride >= n || e % stride >= n) gram[e] = 0.0;
    }
    multiply(team_, spectrum().stage, {n, n, q_}, true, rows, rows,
             [=](int i, int j, double value) {
               if (i >= j) gram[i * stride + j] = gram[j * stride + i] = value;
             });
    double trace = 0.0;
    for (int i = team_.thread(); i < n; i += team_.threads()) trace += gram[i * stride + i];
    trace = team_.sum(trace);
    scaled_ = trace > 0.0 && trace <= DBL_MAX ? (ilogb(trace) + 2) >> 1 : 0;
    const double down = scalbn(1.0, -2 * scaled_);
    for (int i = team_.thread(); i < stride * stride; i += team_.threads()) gram[i] *= down;
    team_.sync();
    return trace;
  }

  // ---- vectors ----

  /// Vectors of the values found, [count_, n_]; false where they are not told apart. Those from
  /// `any` on need only be orthogonal.
  ANISO_APART bool find_vectors(double* rows, int any) {
    double* room = job_.refine ? product() : b();
    twist(team_, spectrum(), count_, spread_, columns(), room, room + int64_t{n_} * count_);
    Separation<Team> separation(team_, spectrum(), count_, columns(), separated());
    if (!separation.run(spread_, any)) return false;
    turn_back_vectors(rows);
    return true;
  }

  /// B = Z A in the scale of the Gram matrix.
  ANISO_APART void set_rows() {
    const int q = q_;
    const double down = scalbn(1.0, -exponent_);
    double* out = b();
    multiply(team_, spectrum().stage, {k_, q, p_}, false, RowsOf{z(), p_},
             ColumnsOfA{a_, a_.inner != 1},
             [=](int j, int c, double value) { out[int64_t{j} * q + c] = value * down; });
  }

  ANISO_APART void turn_back_vectors(double* rows) {
    if constexpr (kNear) {
      turn_back<kMost>(team_, spectrum(), count_, columns(), rows);
    } else {
      turn_back_bulges(team_, n_, count_, chased(), columns());
      for (int at = team_.thread(); at < n_ * count_; at += team_.threads()) {
        rows[at % count_ * n_ + at / count_] = columns()[at];
      }
      team_.sync();
      for (int first = PanelsBack<Team>::last(n_); first >= 0; first -= kJoined) {
        join_panels(first);
        multiply_panels(first, rows);
        subtract_panels(first, rows);
      }
    }
  }

  ANISO_PHASE PanelsBack<Team> panels(int first) const {
    return {team_, spectrum(), count_, joined(), first};
  }
  ANISO_APART void join_panels(int first) const { panels(first).join(); }
  ANISO_APART void multiply_panels(int first, const double* rows) const {
    panels(first).multiply_rows(rows);
    panels(first).multiply_joined();
  }
  ANISO_APART void subtract_panels(int first, double* rows) const { panels(first).subtract(rows); }

  // ---- small values ----

  /// Rows whose values the Gram matrix leaves in doubt, cleared of the rows before, have a Gram
  /// matrix of their own that tells them apart; and so on, until nothing small is left. Z, B and
  /// what is kept of B's rows; false where vectors are not told apart.
  ANISO_APART bool refine() {
    if (!find_vectors(z(), heads())) return false;
    set_rows();
    keep(0, job_.gram_error * norm_ * norm_, 0.0);
    double removed = 0.0;
    for (int first = heads(); first < p_; first += heads()) {
      team_.sync();  // the team has one n_ and one count_, which heads() reads
      method_ = SVD_REFINED;
      n_ = count_ = p_ - first;
      removed += clear_of(first) + turn_error() * norm_;
      const double total = accumulate_rows(b() + first * q_);
      if (sqrt(total) <= kNoise * norm_) {
        keep(first, total, removed);
        break;
      }
      find_values();
      if (!find_vectors(turn(), heads())) return false;
      turn_rows(b() + first * q_, q_);
      turn_rows(z() + first * p_, p_);
      keep(first, job_.gram_error * total, removed);
    }
    return true;
  }

  /// ‖error‖_F of orthogonal transformations of A, over ‖A‖_F.
  ANISO_PHASE double turn_error() const { return 24.0 * kUnit * sqrt(static_cast<double>(p_)); }

  /// Norms of rows first.. of B, and how far their squares and they themselves may be off.
  ANISO_APART void keep(int first, double square_error, double error) const {
    for (int j = first + team_.warp(); j < p_; j += Team::kWarps) {
      const double square = square_of_row(j);
      if (team_.lane() != 0) continue;
      kept()[j] = sqrt(square);
      kept()[p_ + j] = square_error;
      kept()[2 * p_ + j] = error;
    }
    team_.sync();
  }

  /// Takes from rows first.. of B their parts along the rows before; returns the norm of those.
  ANISO_APART double clear_of(int first) const {
    const int q = q_;
    double removed = 0.0, *parts = turn(), *tail = b() + first * q;
    const double* norms = kept();
    for (int again = 0; again < 2; ++again) {
      multiply(team_, spectrum().stage, {n_, first, q}, false, RowsOf{tail, q}, RowsOf{b(), q},
               [=](int i, int j, double value) {
                 parts[i * first + j] = norms[j] > 0.0 ? value / (norms[j] * norms[j]) : 0.0;
               });
      for (int e = team_.thread(); again == 0 && e < n_ * first; e += team_.threads()) {
        const double along = parts[e] * norms[e % first];
        removed += along * along;
      }
      multiply(team_, spectrum().stage, {n_, q, first}, false, RowsOf{parts, first},
               ColumnsOf{b(), q}, [=](int i, int c, double value) { tail[i * q + c] -= value; });
    }
    return sqrt(team_.sum(removed));
  }

  /// rows ← turn() rows, [n_, length].
  ANISO_APART void turn_rows(double* rows, int length) const {
    double* turned = product();
    multiply(team_, spectrum().stage, {n_, length, n_}, false, RowsOf{turn(), n_},
             ColumnsOf{rows, length},
             [=](int i, int c, double value) { turned[i * length + c] = value; });
    for (int e = team_.thread(); e < n_ * length; e += team_.threads()) rows[e] = turned[e];
    team_.sync();
  }

  /// Rows of B of which only rounding errors are left become orthogonal to the rows before; where
  /// nothing is left by that, any such direction will do.
  ANISO_APART void complete() const {
    for (int j = 0; j < returned(); ++j) {
      const double norm = norms()[order()[j]];
      if (norm > kNoise * norm_) continue;
      if (!(norm > 0.0) || !(clear_row(j) >= kLeftOver)) {
        double* row = b() + order()[j] * q_;
        for (int c = team_.thread(); c < q_; c += team_.threads()) {
          row[c] = scattered_entry(static_cast<uint64_t>(j) * q_ + c);
        }
        team_.sync();
        clear_row(j);
        clear_row(j);
      }
      clear_row(j);
    }
  }

  /// Row j of B, in order, without its parts along the rows before it, brought to length 1; what
  /// was left of it.
  ANISO_PHASE double clear_row(int j) const {
    double *row = b() + order()[j] * q_, *along = spectrum().stage + 3 * k_;
    for (int i = team_.warp(); i < j; i += Team::kWarps) {
      const double* other = b_row(order()[i]);
      double sum = 0.0;
      for (int c = team_.lane(); c < q_; c += team_.lanes()) sum += row[c] * other[c];
      sum = team_.warp_sum(sum);
      if (team_.lane() == 0) along[i] = sum;
    }
    team_.sync();
    double squares = 0.0;
    for (int c = team_.thread(); c < q_; c += team_.threads()) {
      double entry = row[c];
      for (int i = 0; i < j; ++i) entry -= along[i] * b_row(order()[i])[c];
      row[c] = entry;
      squares += entry * entry;
    }
    const double left = sqrt(team_.sum(squares));
    for (int c = team_.thread(); c < q_; c += team_.threads()) row[c] /= left;
    team_.sync();
    return left;
  }

  // ---- rotations, where squares may leave the range of float64 or small values count ----

  /// A in float64, its largest entry brought to [1/2, 1).
  ANISO_APART void load() {
    double largest = 0.0;
    for (int e = team_.thread(); e < p_ * q_; e += team_.threads()) {
      loaded()[e] = a_.exactly(e / q_, e % q_);
      largest = fmax(largest, fabs(loaded()[e]));
    }
    largest = team_.largest(largest);
    lifted_ = largest > 0.0 && largest <= DBL_MAX ? ilogb(largest) + 1 : 0;
    for (int e = team_.thread(); e < p_ * q_; e += team_.threads()) {
      loaded()[e] = scalbn(loaded()[e], -lifted_);
    }
    team_.sync();
  }

  /// Z and B, whose rows become orthogonal: from the vectors of the Gram matrix on, which spare
  /// sweeps, or from A itself, whose small values they would leave less accurate.
  ANISO_APART bool turn_until_orthogonal() {
    method_ = SVD_JACOBI;
    if (!job_.high) find_values();
    const bool begun = !job_.high && spectrum().values()[0] > 0.0 && find_vectors(z(), heads());
    begun ? begin_with_vectors() : begin_with_rows();
    for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
      if (!sweep_rows()) return true;
    }
    return false;
  }

  ANISO_APART void begin_with_rows() const {
    const double down = scalbn(1.0, lifted_ - exponent_);
    for (int e = team_.thread(); e < p_ * p_; e += team_.threads()) {
      z()[e] = e / p_ == e % p_ ? 1.0 : 0.0;
    }
    for (int e = team_.thread(); e < p_ * q_; e += team_.threads()) b()[e] = loaded()[e] * down;
    team_.sync();
  }

  /// One step of Z ← (3 Z - Z Zᵀ Z) / 2 (Björck & Bowie 1971): a defect of ε n becomes one of ε.
  ANISO_APART void begin_with_vectors() const {
    const int p = p_, q = q_;
    double *vectors = z(), *products = b(), *before = products + p * p, *out = b();
    for (int e = team_.thread(); e < p * p; e += team_.threads()) before[e] = vectors[e];
    multiply(team_, spectrum().stage, {p, p, p}, false, RowsOf{vectors, p}, RowsOf{vectors, p},
             [=](int i, int j, double value) {
               products[i * p + j] = 0.5 * (value - (i == j ? 1.0 : 0.0));
             });
    multiply(team_, spectrum().stage, {p, p, p}, false, RowsOf{products, p}, ColumnsOf{before, p},
             [=](int i, int j, double value) { vectors[i * p + j] -= value; });
    const double down = scalbn(1.0, lifted_ - exponent_);
    multiply(team_, spectrum().stage, {p, q, p}, false, RowsOf{vectors, p}, ColumnsOf{loaded(), q},
             [=](int i, int c, double value) { out[i * q + c] = value * down; });
  }

  /// Every two blocks of rows; whether any had to be turned.
  ANISO_APART bool sweep_rows() const {
    bool turned = false;
    const int last = (p_ - 1) / kBlock > 1 ? (p_ - 1) / kBlock : 1;
    for (int first = 0; first < last; ++first) {
      for (int second = first + 1; second <= last; ++second) {
        if (!compare_blocks(first, second)) continue;
        turned = true;
        diagonalize_blocks(first, second);
        turn_blocks(first, second, b(), q_);
        if (job_.out.left != nullptr) turn_blocks(first, second, z(), p_);
      }
    }
    return turned;
  }
  ANISO_PHASE BlockPair<Team> blocks(int first, int second) const {
    return {team_, spectrum().stage, p_, first, second};
  }
  ANISO_APART bool compare_blocks(int first, int second) const {
    return blocks(first, second).compare(b(), q_);
  }
  ANISO_APART void diagonalize_blocks(int first, int second) const {
    blocks(first, second).diagonalize(q_);
  }
  ANISO_APART void turn_blocks(int first, int second, double* rows, int length) const {
    blocks(first, second).turn(rows, length);
  }

  // The workspace: addresses are cheaper to find again than to keep in registers.

  /// The Gram matrix where it is not near, then the band.
  ANISO_PHASE double* band() const { return far_ + whole_blocks(p_) * whole_blocks(p_); }
  /// Vectors of T, [p, k].
  ANISO_PHASE double* columns() const {
    return kNear ? far_ : band() + whole_blocks(p_) * (kColumn + kBand);
  }
  /// Z, [k, p].
  ANISO_PHASE double* z() const { return columns() + p_ * k_; }
  /// B, [k, q]; before it is there, two matrices [p, k].
  ANISO_PHASE double* b() const { return z() + p_ * k_; }
  /// [p, kGroup]
  ANISO_PHASE double* separated() const { return b() + k_ * (q_ > 2 * p_ ? q_ : 2 * p_); }
  /// [kProbes, q], [kProbes, p], [kProbes, p]
  ANISO_PHASE double* along() const { return separated() + p_ * kGroup; }
  ANISO_PHASE double* across() const { return along() + kProbes * q_; }
  ANISO_PHASE double* images() const { return across() + kProbes * p_; }
  /// Reflectors of the second stage, [p, p], and room for those of the first.
  ANISO_PHASE double* chased() const { return images() + kProbes * p_; }
  ANISO_PHASE double* joined() const { return chased() + p_ * p_; }
  // Where small values are refined: vectors of the tail [p, p], room for a product [p, q] or two
  // matrices [p, p], and what is kept of B's rows [3, p].
  ANISO_PHASE double* turn() const {
    return kNear ? chased() : joined() + 2 * kJoined * (kJoined + k_);
  }
  /// Where rows are rotated instead: A, [p, q].
  ANISO_PHASE double* loaded() const { return turn(); }
  ANISO_PHASE double* product() const { return turn() + p_ * p_; }
  ANISO_PHASE double* kept() const { return product() + p_ * (q_ > 2 * p_ ? q_ : 2 * p_); }

  // The stage, from here on: norms, their descending order, and the signs of vectors.
  ANISO_PHASE double* norms() const { return spectrum().stage; }
  ANISO_PHASE double* signs() const { return spectrum().stage + k_; }
  ANISO_PHASE int* order() const { return reinterpret_cast<int*>(spectrum().stage + 2 * k_); }

  ANISO_PHASE const double* b_row(int j) const { return b() + int64_t{j} * q_; }
  ANISO_PHASE double square_of_row(int j) const {
    double square = 0.0;
    for (int c = team_.lane(); c < q_; c += team_.lanes()) square += b_row(j)[c] * b_row(j)[c];
    return team_.warp_sum(square);
  }
  ANISO_PHASE int returned() const { return static_cast<int>(job_.out.k); }

  /// Writes what is found in Z and B.
  ANISO_APART SvdMethod finish() {
    measure();
    if (job_.out.left == nullptr) {
      results().leave_checks();
      return method_;
    }
    if (job_.refine || job_.rotate) complete();
    check();
    write_vectors();
    return method_;
  }

  /// Norms of B's rows, which are the singular values; their order; bounds; B's rows to length 1.
  ANISO_APART void measure() {
    for (int j = team_.warp(); j < k_; j += Team::kWarps) {
      const double norm = sqrt(square_of_row(j)), inverse = norm > 0.0 ? 1.0 / norm : 0.0;
      for (int c = team_.lane(); c < q_; c += team_.lanes()) b()[int64_t{j} * q_ + c] *= inverse;
      if (team_.lane() == 0) norms()[j] = norm;
    }
    team_.sync();
    for (int j = team_.thread(); j < k_; j += team_.threads()) {
      int rank = 0;
      for (int i = 0; i < k_; ++i) {
        rank += norms()[i] > norms()[j] || (norms()[i] == norms()[j] && i < j);
      }
      order()[rank] = j;
      if (rank >= returned()) continue;
      write_value(rank, j);
    }
    team_.sync();
  }

  /// Row j of B has value `rank`.
  ANISO_PHASE void write_value(int rank, int j) const {
    const double sigma = norms()[j];
    if (job_.rotate) {
      results().write(rank, sigma, 0.0, turn_error() * norm_ + sigma * p_ * orthogonal_below(q_));
    } else if (job_.refine) {
      results().write(rank, sigma, kept()[p_ + j], kept()[2 * p_ + j]);
    } else {
      results().write(rank, sigma, job_.gram_error * norm_ * norm_, 0.0);
    }
  }

  // ---- checks by random probes: E‖R ω‖² = ‖R‖_F² for ω of random signs (Hutchinson 1990) ----

  ANISO_APART void check() {
    combine(b(), q_, false, along());
    images_of(ChosenRows{b(), q_, order()}, returned(), q_, along());
    const double defect_long = defect();
    // ω S Z - ω Vᵀ Aᵀ
    combine(z(), p_, true, across());
    job_.rotate ? images_of(RowsOf{loaded(), q_}, p_, q_, along())
                : images_of(RowsOfA{a_, true}, p_, q_, along());
    const double residual = distance(scalbn(1.0, lifted_ - exponent_));
    combine(z(), p_, false, across());
    images_of(ChosenRows{z(), p_, order()}, returned(), p_, across());
    const double defect_short = defect();
    if (team_.thread() != 0) return;
    const double larger = fmax(defect_long, defect_short);
    job_.out.checks[index_] = sqrt(residual / kProbes) / (norm_ > 0.0 ? norm_ : 1.0);
    job_.out.checks[job_.x.b + index_] = sqrt(larger / kProbes);
  }

  /// out [kProbes, length] = Σ_j ω_j (σ_j) rows_j over the rows returned.
  ANISO_PHASE void combine(const double* rows, int length, bool weighted, double* out) const {
#pragma unroll 1
    for (int c = team_.thread(); c < length; c += team_.threads()) {
      double sums[kProbes] = {};
#pragma unroll 1
      for (int j = 0; j < returned(); ++j) {
        const int row = order()[j];
        const double entry = rows[int64_t{row} * length + c] * (weighted ? norms()[row] : 1.0);
#pragma unroll
        for (int probe = 0; probe < kProbes; ++probe) sums[probe] += entry * probe_sign(j, probe);
      }
#pragma unroll
      for (int probe = 0; probe < kProbes; ++probe) out[int64_t{probe} * length + c] = sums[probe];
    }
    team_.sync();
  }

  /// images() [kProbes, count] = probes rowsᵀ.
  template <class Rows>
  ANISO_PHASE void images_of(const Rows& rows, int count, int length, const double* probes) const {
#pragma unroll 1
    for (int j = team_.warp(); j < count; j += Team::kWarps) {
      double sums[kProbes] = {};
#pragma unroll 1
      for (int c = team_.lane(); c < length; c += team_.lanes()) {
        const double entry = rows(j, c);
#pragma unroll
        for (int probe = 0; probe < kProbes; ++probe) {
          sums[probe] += entry * probes[int64_t{probe} * length + c];
        }
      }
#pragma unroll
      for (int probe = 0; probe < kProbes; ++probe) {
        const double total = team_.warp_sum(sums[probe]);
        if (team_.lane() == 0) images()[probe * count + j] = total;
      }
    }
    team_.sync();
  }

  /// Σ over probes of ‖images - ω‖².
  ANISO_PHASE double defect() const {
    double total = 0.0;
    for (int i = team_.thread(); i < kProbes * returned(); i += team_.threads()) {
      const double rest = images()[i] - probe_sign(i % returned(), i / returned());
      total += rest * rest;
    }
    return team_.sum(total);
  }

  /// ‖across - scale · images‖²
  ANISO_PHASE double distance(double scale) const {
    double total = 0.0;
    for (int i = team_.thread(); i < kProbes * p_; i += team_.threads()) {
      const double rest = across()[i] - scale * images()[i];
      total += rest * rest;
    }
    return team_.sum(total);
  }

  // ---- results ----

  ANISO_PHASE Results<Team> results() const { return {team_, job_, index_, exponent_}; }

  ANISO_APART void write_values() const {
    for (int j = team_.thread(); j < k_; j += team_.threads()) {
      results().write(j, sqrt(spectrum().values()[j] > 0.0 ? spectrum().values()[j] : 0.0),
                      job_.gram_error * norm_ * norm_, 0.0);
    }
    results().leave_checks();
    mark(SVD_GRAM);
  }

  ANISO_APART void mark(SvdMethod method) const { results().mark(method); }

  ANISO_APART void write_vectors() const {
    results().write_vectors(wide_ ? z() : b(), wide_ ? b() : z(), order(), signs());
  }

  const Team team_;
  const Job& job_;
  const int p_, q_, k_;
  const bool wide_;
  double* const far_;  // the workspace
  Entries a_{};
  int64_t index_ = 0;
  // A was divided by 2 to these: by load(), for the last Gram matrix, and for B altogether.
  int lifted_ = 0, scaled_ = 0, exponent_ = 0;
  int n_ = 0, count_ = 0;  // the order of the spectrum at hand, and how many vectors it has
  SvdMethod method_ = SVD_GRAM;
  double norm_ = 0.0, spread_ = 0.0;
};

}  // namespace aniso::svd
