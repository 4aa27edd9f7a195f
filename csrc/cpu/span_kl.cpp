// Rows and threads: who computes which piece of a row, and how pieces become rows. Plain C++: no vectors here.
#include "span_kl.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "dispatch.h"
#include "threads.h"
#include "zeros.h"

namespace sad::cpu {
namespace {

// Rows are cut into pieces always, and at the same columns, so that the bits do not depend on who computes them.
constexpr std::int64_t piece_columns = 1 << 14;
constexpr std::int64_t columns_per_thread = 500'000;  // of supervised rows, some 500 us: starting a thread costs up to 100

std::int64_t pieces_of(const SpanKlParams& a) { return (a.vocab + piece_columns - 1) / piece_columns; }

// log2 of the sum over all pieces; -inf when there is nothing but -inf, NaN when there is a NaN.
double log2_sum(const std::vector<Summary>& pieces) {
    double shift = -HUGE_VAL, sum = 0.0;
    for (const Summary& piece : pieces) {
        if (piece.sum > 0.0) shift = std::max<double>(shift, piece.shift);
    }
    if (shift == -HUGE_VAL) shift = 0.0;
    for (const Summary& piece : pieces) {
        if (piece.sum != 0.0) sum += piece.sum * std::exp2(piece.shift - shift);
    }
    return shift + std::log2(sum);
}

// A log-sum-exp as the state holds it, to base e, and back. Volatile, because GCC 12 vectorises two such round trips side
// by side and leaves the rounding out.
float kept(double log2_sum) {
    volatile float rounded = static_cast<float>(log2_sum * ln2);
    return rounded;
}
double log_sum_of(float kept) { return kept * log2e; }

std::int32_t argmax(const std::vector<Best>& pieces) {
    const Best* best = &pieces.front();
    for (const Best& piece : pieces) {
        if (piece.logit > best->logit) best = &piece;
    }
    return static_cast<std::int32_t>(best->column);
}

// A supervised row on its way through the stages. Within a stage, pieces may be worked on at the same time.
class RowInWork {
 public:
    enum Stage { summaries, comparison, gradients, stages };  // some rows skip some

    RowInWork(const SpanKlParams& a, const Kernels& k, std::int64_t n) : a_(a), k_(k), n_(n) {
        with_grad_ = a.grad.data && a.weights[n] != 0.0f;
        const auto pieces = static_cast<std::size_t>(pieces_of(a));
        if (has(summaries)) student_.resize(pieces), teacher_.resize(pieces);
        if (a.argmax) student_best_.resize(pieces), teacher_best_.resize(pieces);
        if (has(comparison)) sums_.resize(pieces);
        if (a.lse_given) log_sums_ = {log_sum_of(a.lse_given[n]), log_sum_of(a.lse_given[a.rows + n])};
        if (a.state_given) {
            log_sums_ = {log_sum_of(a.state_given[n]), log_sum_of(a.state_given[a.rows + n])};
            total_.pull = a.state_given[2 * a.rows + n];
        }
    }

    void work(int stage, std::int64_t piece) {
        if (!has(stage)) return;
        const std::int64_t begin = piece * piece_columns;
        const Piece columns{n_, begin, std::min(begin + piece_columns, a_.vocab)};
        if (stage == summaries) {
            student_[piece] = k_.summarize(a_, a_.student, columns);
            teacher_[piece] = k_.summarize(a_, a_.teacher, columns);
        } else if (stage == comparison) {
            if (a_.argmax) {
                student_best_[piece] = k_.best_column(a_, a_.student, columns);
                teacher_best_[piece] = k_.best_column(a_, a_.teacher, columns);
            }
            sums_[piece] = k_.compare(a_, columns, log_sums_, with_grad_ && a_.divergence == Divergence::forward);
        } else {
            k_.gradient(a_, columns, log_sums_, total_.pull);
        }
    }

    // After all pieces of a stage.
    void merge(int stage) {
        if (!has(stage)) return;
        if (stage == summaries) {
            log_sums_ = {log2_sum(student_), log2_sum(teacher_)};
            // float16's gradient may be asked for again, from the state, and must have the same bits.
            if (a_.state && a_.student.rows.dtype == Dtype::float16)
                log_sums_ = {log_sum_of(kept(log_sums_.student)), log_sum_of(kept(log_sums_.teacher))};
        }
        if (stage != comparison) return;
        for (const Sums& piece : sums_) {
            total_.value += piece.value;
            total_.pull += piece.pull;
            total_.teacher_entropy += piece.teacher_entropy;
            total_.student_entropy += piece.student_entropy;
        }
    }

    void finish() const {
        if (a_.value) a_.value[n_] = static_cast<float>(total_.value);
        if (a_.state) {
            a_.state[n_] = kept(log_sums_.student);
            a_.state[a_.rows + n_] = kept(log_sums_.teacher);
            if (a_.value) a_.state[2 * a_.rows + n_] = static_cast<float>(total_.pull);
        }
        if (a_.entropies) {
            a_.entropies[n_] = static_cast<float>(total_.teacher_entropy);
            a_.entropies[a_.rows + n_] = static_cast<float>(total_.student_entropy);
            a_.argmax[n_] = argmax(student_best_);
            a_.argmax[a_.rows + n_] = argmax(teacher_best_);
        }
        if (a_.grad.data) fill_zeros(a_, n_, with_grad_ ? a_.vocab : 0);
    }

 private:
    bool has(int stage) const {
        if (stage == summaries) return !a_.lse_given && !a_.state_given;
        if (stage == comparison) return a_.value != nullptr;
        return with_grad_ && (a_.state_given || a_.divergence != Divergence::forward);
    }

    const SpanKlParams& a_;
    const Kernels& k_;
    std::int64_t n_;
    bool with_grad_;
    std::vector<Summary> student_, teacher_;
    std::vector<Best> student_best_, teacher_best_;
    std::vector<Sums> sums_;
    LogSums log_sums_{};
    Sums total_;
};

void leave_out(const SpanKlParams& a, std::int64_t n) {
    if (a.value) a.value[n] = 0.0f;
    for (int i = 0; a.state && i < (a.value ? 3 : 2); ++i) a.state[i * a.rows + n] = 0.0f;
    for (int i = 0; a.entropies && i < 2; ++i) a.entropies[i * a.rows + n] = 0.0f, a.argmax[i * a.rows + n] = 0;
    if (a.grad.data) fill_zeros(a, n, 0);
}

// A row of its own for every thread: it stays in that thread's cache from stage to stage.
void whole_row(const SpanKlParams& a, const Kernels& kernels, std::int64_t n) {
    RowInWork row(a, kernels, n);
    for (int stage = 0; stage < RowInWork::stages; ++stage) {
        for (std::int64_t piece = 0; piece < pieces_of(a); ++piece) row.work(stage, piece);
        row.merge(stage);
    }
    row.finish();
}

}  // namespace

void span_kl(const SpanKlParams& a, const Kernels& kernels, int threads) {
    std::vector<std::int64_t> supervised;
    for (std::int64_t n = 0; n < a.rows; ++n) {
        if (a.kinds[n] != 0) supervised.push_back(n);
    }
    const auto read = static_cast<std::int64_t>(supervised.size()), pieces = pieces_of(a);
    const std::int64_t worth = 1 + (read * a.vocab + a.rows * a.vocab / 8) / columns_per_thread;
    threads = static_cast<int>(std::min<std::int64_t>(threads, worth));
    // What does not come out even is shared, unless there are so many rows that nobody waits long for the last.
    const bool share = threads > 1 && pieces > 1 && read < 16 * threads;
    const std::int64_t first_shared = share ? read - read % threads : read;

    std::vector<RowInWork> shared;
    for (std::int64_t i = first_shared; i < read; ++i) {
        shared.emplace_back(a, kernels, supervised[static_cast<std::size_t>(i)]);
    }
    const std::int64_t end_of_whole = share && !shared.empty() ? supervised[static_cast<std::size_t>(first_shared)] : a.rows;
    Chunks rows(a.rows, std::max<std::int64_t>(1, 4 * piece_columns / a.vocab));
    Stages stages(RowInWork::stages, static_cast<std::int64_t>(shared.size()) * pieces);
    on_threads(threads, [&] {
        rows.take([&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t n = begin; n < end; ++n) {
                if (a.kinds[n] == 0) {
                    leave_out(a, n);
                } else if (n < end_of_whole) {
                    whole_row(a, kernels, n);
                }
            }
        });
        stages.take([&](int stage, std::int64_t i) { shared[static_cast<std::size_t>(i / pieces)].work(stage, i % pieces); },
                    [&](int stage) {
                        for (RowInWork& row : shared) row.merge(stage);
                    });
    });
    for (const RowInWork& row : shared) row.finish();
}

void scale_rows(std::int64_t rows, std::int64_t columns, const Rows<void>& grad, const std::uint8_t* kinds, float factor,
                const Kernels& kernels, int threads) {
    const std::int64_t rows_at_once = std::max<std::int64_t>(1, (1 << 16) / std::max<std::int64_t>(columns, 1));
    parallel_for(rows, rows_at_once, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t n = begin; n < end; ++n) {
            if (kinds[n] != 0) kernels.scale(grad, n, columns, factor);
        }
    });
}

}  // namespace sad::cpu
