// The losses against top-k columns and labels. A row's k columns and its label are computed here in double. The passes of
// topk_passes.h process all other columns. Exponents are base 2 and relative to the row's origin: factor (y - origin).
#include <algorithm>
#include <cmath>
#include <vector>

#include "dispatch.h"
#include "half.h"
#include "kernels.h"
#include "row_tasks.h"
#include "threads.h"

namespace sad::cpu {
namespace {

constexpr double minus_inf = -HUGE_VAL;

// log2 of a sum of powers 2^x, added in the order of the calls. An empty sum is -inf. A NaN makes the sum NaN.
class Log2Sum {
 public:
    void add(double x) {
        if (x > shift_) {
            sum_ = shift_ == minus_inf ? sum_ : sum_ * std::exp2(shift_ - x);
            shift_ = x;
        }
        if (x != minus_inf) sum_ += std::exp2(x - (shift_ == minus_inf ? 0.0 : shift_));
    }
    double log2() const { return (shift_ == minus_inf ? 0.0 : shift_) + std::log2(sum_); }

 private:
    double shift_ = minus_inf, sum_ = 0.0;
};

// a (expm1(r) - r) with r = log b - log a: b if a == 0, +inf if b == 0 < a.
double kl_term(double a, double b, double r) {
    if (std::fabs(r) < 0.5) return a * std::max(0.0, std::expm1(r) - r);
    return a == 0.0 ? b : b - a - a * r;
}

// One of the top-k columns, or the label.
struct Entry {
    std::int32_t column = 0;
    double log2_p = minus_inf;
    double y = minus_inf;  // logit, or its tanh if there is a cap
    double exponent = minus_inf;
    double slope = 1.0;  // dz / dx without the scale
    double q = 0.0;
};

// The computation of one supervised row.
class TopkRowTask {
 public:
    TopkRowTask(const TopkSpanKlParams& topk, const RowPasses& passes)
        : topk_(topk), params_(topk.base), passes_(passes), factor_(exponent_factor(params_.student, params_.temperature)) {}

    void run(std::int64_t n) {
        n_ = n;
        collect_entries();
        compute_log_sum_exps();
        if (params_.value) write_values();
        if (!params_.grad.data) return;
        const bool with_grad = params_.weights[n] != 0.0f;
        if (with_grad) write_gradient();
        zero_gradient(params_, n, with_grad ? params_.vocab : 0);
    }

 private:
    Piece whole() const { return {n_, 0, params_.vocab}; }
    bool has_label() const { return label_ >= 0; }
    bool label_in_topk() const { return label_index_ < entries_.size(); }
    bool rest_is_empty() const { return rest_of_row_.log2_sum == minus_inf; }  // no column, or only logits of -inf
    double cross_entropy_share() const { return has_label() ? 1.0 - topk_.alpha : 0.0; }

    // Reads y and slope of an entry. Runs after the sum over the row, when the row is in the cache.
    void read(Entry& e) const {
        const Logits& side = params_.student;
        const std::int64_t at = side.rows.offset(n_) + e.column;
        const auto logit = [&](auto type) {
            return static_cast<double>(to_float(static_cast<const decltype(type)*>(side.rows.data)[at]));
        };
        const Dtype dtype = side.rows.dtype;
        const double x = dtype == Dtype::bfloat16  ? logit(Bfloat16{})
                         : dtype == Dtype::float16 ? logit(Float16{})
                                                   : logit(float{});
        e.y = x;
        if (side.cap == 0.0f) return;
        e.y = std::tanh(x * side.scale / side.cap);
        e.slope = 1.0 - e.y * e.y;
    }

    // Collects the top-k columns and the label, which the sum over the other columns leaves out.
    void collect_entries() {
        entries_.clear();
        excluded_.clear();
        label_ = topk_.labels ? topk_.labels[n_] : -1;
        label_index_ = static_cast<std::size_t>(topk_.k);
        for (std::int64_t i = n_ * topk_.k; i < (n_ + 1) * topk_.k; ++i) {
            const std::int32_t column = topk_.columns[i];
            if (column >= params_.vocab) break;
            if (!excluded_.empty() && excluded_.back() == column) continue;
            if (column == label_) label_index_ = entries_.size();
            entries_.push_back({column, topk_.log_p[i] * log2e});
            excluded_.push_back(column);
        }
        has_tail_ = static_cast<std::int64_t>(entries_.size()) < params_.vocab;
        if (has_label() && !label_in_topk()) {
            label_entry_ = {label_, minus_inf};
            excluded_.insert(std::lower_bound(excluded_.begin(), excluded_.end(), label_), label_);
        }
    }

    void compute_log_sum_exps() {
        if (params_.state_given) {
            rest_of_row_ = {params_.state_given[3 * params_.rows + n_], params_.state_given[params_.rows + n_] * log2e};
        } else {
            const ExpSum others =
                passes_.sum_exps_except(params_, whole(), {excluded_.data(), excluded_.data() + excluded_.size()});
            rest_of_row_ = {others.origin, std::log2(others.sum)};
        }
        const bool label_in_tail = has_label() && !label_in_topk();
        for (Entry& e : entries_) read(e);
        if (label_in_tail) read(label_entry_);
        double origin = rest_is_empty() ? minus_inf : rest_of_row_.origin;
        for (const Entry& e : entries_) origin = std::max(origin, e.y);
        if (label_in_tail) origin = std::max(origin, label_entry_.y);
        origin_ = origin == minus_inf ? 0.0f : static_cast<float>(origin);

        for (Entry& e : entries_) e.exponent = factor_ * (e.y - origin_);
        rest_ = rest_is_empty() ? minus_inf
                                : rest_of_row_.log2_sum + factor_ * (static_cast<double>(rest_of_row_.origin) - origin_);
        Log2Sum all, tail;
        tail.add(rest_);
        if (label_in_tail) {
            label_entry_.exponent = factor_ * (label_entry_.y - origin_);
            tail.add(label_entry_.exponent);
        }
        tail_ = tail.log2();
        all.add(tail_);
        for (const Entry& e : entries_) all.add(e.exponent);
        all_ = all.log2();
        for (Entry& e : entries_) e.q = std::exp2(e.exponent - all_);
        label_entry_.q = std::exp2(label_entry_.exponent - all_);
        log2_p_tail_ = topk_.log_tail[n_] * log2e;
    }

    static double term(double log2_p, double log2_q) {
        return kl_term(std::exp2(log2_p), std::exp2(log2_q), (log2_q - log2_p) * ln2);
    }

    double kl() const {
        double total = has_tail_ ? term(log2_p_tail_, tail_ - all_) : 0.0;
        for (const Entry& e : entries_) total += term(e.log2_p, e.exponent - all_);
        return total;
    }

    double cross_entropy() const {
        if (!has_label()) return 0.0;
        double others = std::exp2(rest_ - all_);
        for (const Entry& e : entries_) others += e.column == label_ ? 0.0 : e.q;
        const Entry& y = label_in_topk() ? entries_[label_index_] : label_entry_;
        return others + term(0.0, y.exponent - all_);
    }

    void write_values() const {
        double value = topk_.alpha > 0.0f ? topk_.alpha * kl() : 0.0;
        if (topk_.labels) value += (1.0 - topk_.alpha) * cross_entropy();
        params_.value[n_] = static_cast<float>(value);
        if (params_.state) {
            params_.state[n_] = static_cast<float>(all_ * ln2);
            params_.state[params_.rows + n_] = static_cast<float>(rest_of_row_.log2_sum * ln2);
            params_.state[2 * params_.rows + n_] = origin_;
            params_.state[3 * params_.rows + n_] = rest_of_row_.origin;
        }
        if (params_.entropies) {
            params_.entropies[n_] = static_cast<float>(passes_.entropy(params_, whole(), {origin_, all_}));
            params_.argmax[n_] = static_cast<std::int32_t>(passes_.find_argmax(params_, params_.student, whole()).column);
        }
    }

    // Writes q times the factor of the tail to all columns, then overwrites the top-k columns and the label.
    void write_gradient() {
        const double alpha = topk_.alpha, ce_share = cross_entropy_share();
        const double weight = static_cast<double>(params_.weights[n_]) / params_.temperature * params_.student.scale;
        const double excess = log2_p_tail_ - (tail_ - all_);  // log2(p_tail / q_tail)
        double factor = alpha + ce_share - (alpha > 0.0 ? alpha * std::exp2(std::min(excess, 60.0)) : 0.0);
        double log_factor = std::log2(std::fabs(factor));
        if (alpha > 0.0 && excess > 60.0) log_factor = std::log2(alpha) + excess;  // here `factor` is negative
        if (rest_is_empty() || factor == 0.0) {
            zero_gradient(params_, n_, 0);
        } else {
            const double log_divisor = all_ + factor_ * (static_cast<double>(origin_) - rest_of_row_.origin) - log_factor -
                                       std::log2(std::fabs(weight));
            passes_.write_scaled_softmax(params_, whole(), {rest_of_row_.origin, log_divisor},
                                         (factor < 0.0) == (weight < 0.0) ? 1.0f : -1.0f);
        }
        for (const Entry& e : entries_) {
            const double kl_gradient = alpha > 0.0 ? alpha * (e.q - std::exp2(e.log2_p)) : 0.0;
            write(e, weight * (kl_gradient + ce_share * (e.q - (e.column == label_ ? 1.0 : 0.0))));
        }
        if (has_label() && !label_in_topk()) {
            double kl_gradient = 0.0;
            if (alpha > 0.0 && label_entry_.exponent != minus_inf) {
                kl_gradient = alpha * (label_entry_.q - std::exp2(log2_p_tail_ + label_entry_.exponent - tail_));
            }
            write(label_entry_, weight * (kl_gradient + ce_share * (label_entry_.q - 1.0)));
        }
    }

    void write(const Entry& e, double g) const {
        const std::int64_t at = params_.grad.offset(n_) + e.column;
        const auto store = [&](auto type) {
            from_float(static_cast<float>(g * e.slope), static_cast<decltype(type)*>(params_.grad.data)[at]);
        };
        if (params_.grad.dtype == Dtype::bfloat16) {
            store(Bfloat16{});
        } else if (params_.grad.dtype == Dtype::float16) {
            store(Float16{});
        } else {
            store(float{});
        }
    }

    const TopkSpanKlParams& topk_;
    const SpanKlParams& params_;
    const RowPasses& passes_;
    double factor_;
    std::int64_t n_ = 0;
    std::vector<Entry> entries_;          // the top-k columns
    std::vector<std::int32_t> excluded_;  // the top-k columns and the label, ascending
    std::int32_t label_ = -1;
    std::size_t label_index_ = 0;  // index of the label in entries_; k or more if it is not in the top k
    Entry label_entry_{};          // the label if it is not in the top k
    bool has_tail_ = false;
    // Log-sum-exps over all columns, over the columns outside the top k, and over those that are not the label either.
    float origin_ = 0.0f;  // the largest y
    double all_ = 0.0, tail_ = 0.0, rest_ = 0.0;
    LogSumExp rest_of_row_;  // rest_ with its own origin
    double log2_p_tail_ = 0.0;
};

// Writes the outputs of a row that is not read.
void zero_outputs(const SpanKlParams& params, std::int64_t n) {
    if (params.value) params.value[n] = 0.0f;
    for (int i = 0; params.state && i < 4; ++i) params.state[i * params.rows + n] = 0.0f;
    if (params.entropies) params.entropies[n] = 0.0f, params.argmax[n] = 0;
    if (params.grad.data) zero_gradient(params, n, 0);
}

}  // namespace

void topk_span_kl(const TopkSpanKlParams& topk, const RowPasses& passes, int threads) {
    const SpanKlParams& params = topk.base;
    const std::int64_t read = params.rows - std::count(params.kinds, params.kinds + params.rows, 0);
    const std::int64_t rows_at_once = std::max<std::int64_t>(1, (1 << 16) / params.vocab);
    parallel_for(params.rows, rows_at_once, useful_threads(params, read, threads),
                 [&](std::int64_t begin, std::int64_t end) {
                     TopkRowTask row(topk, passes);
                     for (std::int64_t n = begin; n < end; ++n) {
                         if (params.kinds[n] == 0) {
                             zero_outputs(params, n);
                         } else {
                             row.run(n);
                         }
                     }
                 });
}

}  // namespace sad::cpu
