// Distributes rows and their pieces over threads, and merges the results. The vector code is in row_passes.h.
#include <algorithm>
#include <cmath>
#include <vector>

#include "dispatch.h"
#include "kernels.h"
#include "row_tasks.h"
#include "threads.h"

namespace sad::cpu {
namespace {

// Every row is split into pieces at the same columns, so that the result has the same bits for any number of threads.
constexpr std::int64_t piece_columns = 1 << 14;

std::int64_t pieces_of(const SpanKlParams& params) { return (params.vocab + piece_columns - 1) / piece_columns; }

// Returns the log-sum-exp over all pieces: -inf if all logits are -inf, NaN if one is NaN.
LogSumExp merged_sum(const std::vector<ExpSum>& pieces, double factor) {
    float origin = -HUGE_VALF;
    for (const ExpSum& piece : pieces) {
        if (piece.sum > 0.0) origin = std::max(origin, piece.origin);
    }
    if (origin == -HUGE_VALF) origin = 0.0f;
    double sum = 0.0;
    for (const ExpSum& piece : pieces) {
        const double distance = static_cast<double>(piece.origin) - origin;
        if (piece.sum != 0.0) sum += piece.sum * std::exp2(factor * distance);
    }
    return {origin, std::log2(sum)};
}

// The log-sum-exps of student and teacher in an array (K, rows): log-sums in nats from row 0 on, origins from a later row
// on.
class StoredLogSumExps {
 public:
    StoredLogSumExps(std::int64_t rows, std::int64_t n, int origins)
        : log_sums_{n, rows + n}, origins_{origins * rows + n, (origins + 1) * rows + n} {}

    LogSumExps read(const float* from) const { return {read(from, 0), read(from, 1)}; }
    void write(const LogSumExps& log_sum_exps, float* to) const {
        write(log_sum_exps.student, 0, to);
        write(log_sum_exps.teacher, 1, to);
    }

 private:
    LogSumExp read(const float* from, int side) const { return {from[origins_[side]], from[log_sums_[side]] * log2e}; }
    void write(const LogSumExp& x, int side, float* to) const {
        to[origins_[side]] = x.origin;
        to[log_sums_[side]] = static_cast<float>(x.log2_sum * ln2);
    }
    std::int64_t log_sums_[2], origins_[2];
};

std::int32_t merged_argmax(const std::vector<Argmax>& pieces) {
    const Argmax* best = &pieces.front();
    for (const Argmax& piece : pieces) {
        if (piece.logit > best->logit) best = &piece;
    }
    return static_cast<std::int32_t>(best->column);
}

// The computation of one supervised row, in stages. Threads may run the pieces of one stage at the same time.
class RowTask {
 public:
    enum Stage { exp_sums, divergence_sums, gradients, stages };

    RowTask(const SpanKlParams& params, const RowPasses& passes, std::int64_t n) : params_(params), passes_(passes), n_(n) {
        with_grad_ = params.grad.data && params.weights[n] != 0.0f;
        const auto pieces = static_cast<std::size_t>(pieces_of(params));
        if (needs(exp_sums)) student_.resize(pieces), teacher_.resize(pieces);
        if (params.argmax) student_argmax_.resize(pieces), teacher_argmax_.resize(pieces);
        if (needs(divergence_sums)) sums_.resize(pieces);
        if (params.lse_given) log_sum_exps_ = StoredLogSumExps(params.rows, n, 2).read(params.lse_given);
        if (params.state_given) {
            log_sum_exps_ = StoredLogSumExps(params.rows, n, 3).read(params.state_given);
            total_.mean_dlogp = params.state_given[2 * params.rows + n];
        }
    }

    void run(int stage, std::int64_t piece) {
        if (!needs(stage)) return;
        const std::int64_t begin = piece * piece_columns;
        const Piece columns{n_, begin, std::min(begin + piece_columns, params_.vocab)};
        if (stage == exp_sums) {
            student_[piece] = passes_.sum_exps(params_, params_.student, columns);
            teacher_[piece] = passes_.sum_exps(params_, params_.teacher, columns);
        } else if (stage == divergence_sums) {
            if (params_.argmax) {
                student_argmax_[piece] = passes_.find_argmax(params_, params_.student, columns);
                teacher_argmax_[piece] = passes_.find_argmax(params_, params_.teacher, columns);
            }
            sums_[piece] = passes_.sum_divergence(params_, columns, log_sum_exps_,
                                                  with_grad_ && params_.divergence == Divergence::forward);
        } else {
            passes_.gradient(params_, columns, log_sum_exps_, total_.mean_dlogp);
        }
    }

    // Merges the results of all pieces of a stage.
    void merge(int stage) {
        if (!needs(stage)) return;
        if (stage == exp_sums) {
            log_sum_exps_ = {merged_sum(student_, exponent_factor(params_.student, params_.temperature)),
                             merged_sum(teacher_, exponent_factor(params_.teacher, params_.temperature))};
        }
        if (stage != divergence_sums) return;
        for (const DivergenceSums& piece : sums_) {
            total_.value += piece.value;
            total_.mean_dlogp += piece.mean_dlogp;
            total_.teacher_entropy += piece.teacher_entropy;
            total_.student_entropy += piece.student_entropy;
        }
    }

    void finish() const {
        if (params_.value) params_.value[n_] = static_cast<float>(total_.value);
        if (params_.state) {
            StoredLogSumExps(params_.rows, n_, params_.value ? 3 : 2).write(log_sum_exps_, params_.state);
            if (params_.value) params_.state[2 * params_.rows + n_] = static_cast<float>(total_.mean_dlogp);
        }
        if (params_.entropies) {
            params_.entropies[n_] = static_cast<float>(total_.teacher_entropy);
            params_.entropies[params_.rows + n_] = static_cast<float>(total_.student_entropy);
            params_.argmax[n_] = merged_argmax(student_argmax_);
            params_.argmax[params_.rows + n_] = merged_argmax(teacher_argmax_);
        }
        if (params_.grad.data) zero_gradient(params_, n_, with_grad_ ? params_.vocab : 0);
    }

 private:
    bool needs(int stage) const {
        if (stage == exp_sums) return !params_.lse_given && !params_.state_given;
        if (stage == divergence_sums) return params_.value != nullptr;
        return with_grad_ && (params_.state_given || params_.divergence != Divergence::forward);
    }

    const SpanKlParams& params_;
    const RowPasses& passes_;
    std::int64_t n_;
    bool with_grad_;
    std::vector<ExpSum> student_, teacher_;
    std::vector<Argmax> student_argmax_, teacher_argmax_;
    std::vector<DivergenceSums> sums_;
    LogSumExps log_sum_exps_{};
    DivergenceSums total_;
};

// Writes the outputs of a row that is not read.
void zero_outputs(const SpanKlParams& params, std::int64_t n) {
    if (params.value) params.value[n] = 0.0f;
    for (int i = 0; params.state && i < (params.value ? 5 : 4); ++i) params.state[i * params.rows + n] = 0.0f;
    for (int i = 0; params.entropies && i < 2; ++i)
        params.entropies[i * params.rows + n] = 0.0f, params.argmax[i * params.rows + n] = 0;
    if (params.grad.data) zero_gradient(params, n, 0);
}

// Computes a row on the calling thread. The row stays in the cache of this thread between the stages.
void run_whole_row(const SpanKlParams& params, const RowPasses& passes, std::int64_t n) {
    RowTask row(params, passes, n);
    for (int stage = 0; stage < RowTask::stages; ++stage) {
        for (std::int64_t piece = 0; piece < pieces_of(params); ++piece) row.run(stage, piece);
        row.merge(stage);
    }
    row.finish();
}

}  // namespace

void span_kl(const SpanKlParams& params, const RowPasses& passes, int threads) {
    std::vector<std::int64_t> supervised;
    for (std::int64_t n = 0; n < params.rows; ++n) {
        if (params.kinds[n] != 0) supervised.push_back(n);
    }
    const auto read = static_cast<std::int64_t>(supervised.size()), pieces = pieces_of(params);
    threads = useful_threads(params, read, threads);
    // The threads share the rows that remain when each thread has the same number of whole rows. With many rows they do not,
    // because then no thread waits long for the last row.
    const bool share = threads > 1 && pieces > 1 && read < 16 * threads;
    const std::int64_t first_shared = share ? read - read % threads : read;

    std::vector<RowTask> shared;
    for (std::int64_t i = first_shared; i < read; ++i) {
        shared.emplace_back(params, passes, supervised[static_cast<std::size_t>(i)]);
    }
    const std::int64_t first_shared_row =
        share && !shared.empty() ? supervised[static_cast<std::size_t>(first_shared)] : params.rows;
    Chunks rows(params.rows, std::max<std::int64_t>(1, 4 * piece_columns / params.vocab));
    Stages stages(RowTask::stages, static_cast<std::int64_t>(shared.size()) * pieces);
    run_on_threads(threads, [&] {
        rows.process([&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t n = begin; n < end; ++n) {
                if (params.kinds[n] == 0) {
                    zero_outputs(params, n);
                } else if (n < first_shared_row) {
                    run_whole_row(params, passes, n);
                }
            }
        });
        stages.process(
            [&](int stage, std::int64_t i) { shared[static_cast<std::size_t>(i / pieces)].run(stage, i % pieces); },
            [&](int stage) {
                for (RowTask& row : shared) row.merge(stage);
            });
    });
    for (const RowTask& row : shared) row.finish();
}

void scale_rows(std::int64_t rows, std::int64_t columns, const Rows<void>& grad, const std::uint8_t* kinds, float factor,
                const RowPasses& passes, int threads) {
    const std::int64_t rows_at_once = std::max<std::int64_t>(1, (1 << 16) / std::max<std::int64_t>(columns, 1));
    parallel_for(rows, rows_at_once, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t n = begin; n < end; ++n) {
            if (kinds[n] != 0) passes.scale(grad, n, columns, factor);
        }
    });
}

}  // namespace sad::cpu
