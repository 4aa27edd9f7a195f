// Rows against listed columns and labels: a few numbers a row in double, the rest by passes over its columns. Plain C++: no
// vectors here. Everything is in powers of two: an exponent is z log2(e) / T.
#include "topk_span_kl.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "dispatch.h"
#include "half.h"
#include "threads.h"
#include "zeros.h"

namespace sad::cpu {
namespace {

constexpr std::int64_t columns_per_thread = 500'000;  // as in span_kl.cpp
constexpr double nothing = -HUGE_VAL;

// log2(2^x + ...), in the order of the calls; -inf of nothing, NaN as soon as there is one.
class LogSum {
 public:
    void add(double x) {
        if (x > shift_) {
            sum_ = shift_ == nothing ? sum_ : sum_ * std::exp2(shift_ - x);
            shift_ = x;
        }
        if (x != nothing) sum_ += std::exp2(x - (shift_ == nothing ? 0.0 : shift_));
    }
    double log2() const { return (shift_ == nothing ? 0.0 : shift_) + std::log2(sum_); }

 private:
    double shift_ = nothing, sum_ = 0.0;
};

// a (expm1(r) - r), r = log b - log a; b where a == 0, +inf where b == 0 < a.
double kl_term(double a, double b, double r) {
    if (std::fabs(r) < 0.5) return a * std::max(0.0, std::expm1(r) - r);
    return a == 0.0 ? b : b - a - a * r;
}

// An outcome of its own: a listed column, or the label.
struct Entry {
    std::int32_t column = 0;
    double log2_p = nothing;
    double exponent = nothing, slope = 1.0;  // slope: dz / dx without the scale
    double q = 0.0;
};

class RowInWork {
 public:
    RowInWork(const TopkSpanKlParams& params, const Kernels& kernels) : p_(params), a_(params.base), k_(kernels) {}

    void run(std::int64_t n) {
        n_ = n;
        list();
        sum();
        if (a_.value) write_values();
        if (!a_.grad.data) return;
        const bool with_grad = a_.weights[n] != 0.0f;
        if (with_grad) write_gradient();
        fill_zeros(a_, n, with_grad ? a_.vocab : 0);
    }

 private:
    Piece whole() const { return {n_, 0, a_.vocab}; }
    bool has_label() const { return label_ >= 0; }
    bool label_in_list() const { return label_at_ < entries_.size(); }
    double share_of_label() const { return has_label() ? 1.0 - p_.alpha : 0.0; }

    // After the sum, which has brought the row into the cache.
    void read(Entry& e) const {
        const Side& side = a_.student;
        const std::int64_t at = side.rows.offset(n_) + e.column;
        const auto logit = [&](auto type) {
            return static_cast<double>(to_float(static_cast<const decltype(type)*>(side.rows.data)[at]));
        };
        const Dtype dtype = side.rows.dtype;
        const double x = dtype == Dtype::bfloat16  ? logit(Bfloat16{})
                         : dtype == Dtype::float16 ? logit(Float16{})
                                                   : logit(float{});
        const double per_z = log2e / a_.temperature;
        e.exponent = x * side.scale * per_z;
        if (side.cap == 0.0f) return;
        const double th = std::tanh(x * side.scale / side.cap);
        e.exponent = side.cap * th * per_z;
        e.slope = 1.0 - th * th;
    }

    // What is listed, and what is taken out of the sum of all others.
    void list() {
        entries_.clear();
        taken_.clear();
        label_ = p_.labels ? p_.labels[n_] : -1;
        label_at_ = static_cast<std::size_t>(p_.listed);
        for (std::int64_t i = n_ * p_.listed; i < (n_ + 1) * p_.listed; ++i) {
            const std::int32_t column = p_.columns[i];
            if (column >= a_.vocab) break;
            if (!taken_.empty() && taken_.back() == column) continue;
            if (column == label_) label_at_ = entries_.size();
            entries_.push_back({column, p_.log_p[i] * log2e});
            taken_.push_back(column);
        }
        has_tail_ = static_cast<std::int64_t>(entries_.size()) < a_.vocab;
        if (has_label() && !label_in_list()) {
            alone_ = {label_, nothing};
            taken_.insert(std::lower_bound(taken_.begin(), taken_.end(), label_), label_);
        }
    }

    void sum() {
        LogSum all, tail;
        if (a_.state_given) {
            rest_ = a_.state_given[a_.rows + n_] * log2e;
        } else {
            const Summary others = k_.summarize_others(a_, whole(), {taken_.data(), taken_.data() + taken_.size()});
            rest_ = others.shift + std::log2(others.sum);
        }
        for (Entry& e : entries_) read(e);
        tail.add(rest_);
        if (has_label() && !label_in_list()) {
            read(alone_);
            tail.add(alone_.exponent);
        }
        tail_ = tail.log2();
        all.add(tail_);
        for (const Entry& e : entries_) all.add(e.exponent);
        all_ = a_.state_given ? a_.state_given[n_] * log2e : all.log2();
        for (Entry& e : entries_) e.q = std::exp2(e.exponent - all_);
        alone_.q = std::exp2(alone_.exponent - all_);
        log2_p_tail_ = p_.log_tail[n_] * log2e;
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
        const Entry& y = label_in_list() ? entries_[label_at_] : alone_;
        return others + term(0.0, y.exponent - all_);
    }

    void write_values() const {
        double value = p_.alpha > 0.0f ? p_.alpha * kl() : 0.0;
        if (p_.labels) value += (1.0 - p_.alpha) * cross_entropy();
        a_.value[n_] = static_cast<float>(value);
        if (a_.state) {
            a_.state[n_] = static_cast<float>(all_ * ln2);
            a_.state[a_.rows + n_] = static_cast<float>(rest_ * ln2);
        }
        if (a_.entropies) {
            a_.entropies[n_] = static_cast<float>(k_.entropy(a_, whole(), all_));
            a_.argmax[n_] = static_cast<std::int32_t>(k_.best_column(a_, a_.student, whole()).column);
        }
    }

    // First the tail's columns and, wrongly, all others: q times a number. Then the others.
    void write_gradient() {
        const double alpha = p_.alpha, of_label = share_of_label();
        const double weight = static_cast<double>(a_.weights[n_]) / a_.temperature * a_.student.scale;
        const double excess = log2_p_tail_ - (tail_ - all_);  // log2(p_tail / q_tail)
        double factor = alpha + of_label - (alpha > 0.0 ? alpha * std::exp2(std::min(excess, 60.0)) : 0.0);
        double log_factor = std::log2(std::fabs(factor));
        if (alpha > 0.0 && excess > 60.0) log_factor = std::log2(alpha) + excess;  // and `factor` is negative
        if (tail_ == nothing || factor == 0.0) {
            fill_zeros(a_, n_, 0);
        } else {
            const double log_divisor = all_ - log_factor - std::log2(std::fabs(weight));
            k_.spread(a_, whole(), log_divisor, (factor < 0.0) == (weight < 0.0) ? 1.0f : -1.0f);
        }
        for (const Entry& e : entries_) {
            const double of_kl = alpha > 0.0 ? alpha * (e.q - std::exp2(e.log2_p)) : 0.0;
            write(e, weight * (of_kl + of_label * (e.q - (e.column == label_ ? 1.0 : 0.0))));
        }
        if (has_label() && !label_in_list()) {
            double of_kl = 0.0;
            if (alpha > 0.0 && alone_.exponent != nothing) {
                of_kl = alpha * (alone_.q - std::exp2(log2_p_tail_ + alone_.exponent - tail_));
            }
            write(alone_, weight * (of_kl + of_label * (alone_.q - 1.0)));
        }
    }

    void write(const Entry& e, double g) const {
        const std::int64_t at = a_.grad.offset(n_) + e.column;
        const auto store = [&](auto type) {
            from_float(static_cast<float>(g * e.slope), static_cast<decltype(type)*>(a_.grad.data)[at]);
        };
        if (a_.grad.dtype == Dtype::bfloat16) {
            store(Bfloat16{});
        } else if (a_.grad.dtype == Dtype::float16) {
            store(Float16{});
        } else {
            store(float{});
        }
    }

    const TopkSpanKlParams& p_;
    const SpanKlParams& a_;
    const Kernels& k_;
    std::int64_t n_ = 0;
    std::vector<Entry> entries_;       // the listed columns
    std::vector<std::int32_t> taken_;  // theirs and the label, ascending
    std::int32_t label_ = -1;
    std::size_t label_at_ = 0;
    Entry alone_{};  // the label where it is not listed
    bool has_tail_ = false;
    double rest_ = 0.0, tail_ = 0.0, all_ = 0.0, log2_p_tail_ = 0.0;  // log-sum-exps, and what the tail should have
};

void leave_out(const SpanKlParams& a, std::int64_t n) {
    if (a.value) a.value[n] = 0.0f;
    if (a.state) a.state[n] = a.state[a.rows + n] = 0.0f;
    if (a.entropies) a.entropies[n] = 0.0f, a.argmax[n] = 0;
    if (a.grad.data) fill_zeros(a, n, 0);
}

}  // namespace

void topk_span_kl(const TopkSpanKlParams& params, const Kernels& kernels, int threads) {
    const SpanKlParams& a = params.base;
    const std::int64_t read = a.rows - std::count(a.kinds, a.kinds + a.rows, 0);
    const std::int64_t worth = 1 + (read * a.vocab + a.rows * a.vocab / 8) / columns_per_thread;
    const std::int64_t rows_at_once = std::max<std::int64_t>(1, (1 << 16) / a.vocab);
    threads = static_cast<int>(std::min<std::int64_t>(threads, worth));
    parallel_for(a.rows, rows_at_once, threads, [&](std::int64_t begin, std::int64_t end) {
        RowInWork row(params, kernels);
        for (std::int64_t n = begin; n < end; ++n) {
            if (a.kinds[n] == 0) {
                leave_out(a, n);
            } else {
                row.run(n);
            }
        }
    });
}

}  // namespace sad::cpu
