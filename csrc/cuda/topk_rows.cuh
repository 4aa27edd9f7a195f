// Rows against listed columns and a label, a block for each: two passes over the row, which the second finds in L2, and
// between them the few columns that are outcomes of their own. `TopkSpanKlParams` has the formulas.
//
// The passes must know these columns when they meet them: a bit for every column lies in shared memory, as many columns at a
// time (a window) as there is room for. The tail has a shift of its own, so that a q_tail of 1e-30 keeps its digits.
#pragma once

#include "topk_outcomes.cuh"

namespace sad::cuda {

template <typename S, bool Lean, bool Stats>
class TopkRow {
 public:
    __device__ __forceinline__ TopkRow(const TopkWork& work, std::int64_t row)
        : w_(work),
          a_(work.p.base),
          row_(row),
          student_(static_cast<const S*>(row_of(a_.student.rows, row_, 0))),
          grad_(a_.grad.data ? static_cast<S*>(a_.grad.data) + a_.grad.offset(row_) : nullptr),
          stats_(Stats && a_.argmax != nullptr),
          leads_(threadIdx.x == 0),
          windows_(static_cast<int>((a_.vocab + w_.window - 1) / w_.window)),
          label_(w_.p.labels ? w_.p.labels[row_] : -1) {}

    __device__ __forceinline__ void run(Exchange& exchange) {
        const Outcomes<Stats> found = exchange.over_block(first_pass());
        totals_ = TopkTotals::of(w_, row_, found, label_, its_logit_);
        log2_inverse_ = log2f(totals_.inverse);
        log2_q_tail_ = (totals_.tail_shift - totals_.shift) + (log2f(totals_.tail_total) + log2_inverse_);
        log_p_tail_ = w_.p.log_tail[row_];
        weight_ = grad_ ? a_.weights[row_] * w_.grad_scale : 0.0f;
        of_label_ = label_ >= 0 ? 1.0f - w_.p.alpha : 0.0f;
        MeanLog2 mean = MeanLog2::nothing();
        const TopkSums mine = own_outcomes(mean);
        // Either barrier: in place, the gradient of a listed column now lies where others read the group around it.
        if (a_.value) {
            const TopkSums whole = exchange.over_block(mine);
            if (leads_) write(whole);
        } else {
            __syncthreads();
        }
        if (!grad_ && !stats_) return;
        second_pass(mean);
        // Either barrier: the bits are free for the next row.
        if (stats_) {
            mean = exchange.over_block(mean);
            if (leads_) a_.entropies[row_] = entropy(mean.sum), a_.argmax[row_] = found.rest.argmax();
        } else {
            __syncthreads();
        }
        if (grad_) fill_zeros(grad_ + a_.vocab, static_cast<int>(a_.student_columns - a_.vocab));
    }

 private:
    __device__ __forceinline__ float compared(int column) const {
        return as_compared<Lean>(widen(student_[column]), w_.how);
    }

    __device__ __forceinline__ Outcomes<Stats> first_pass() {
        Outcomes<Stats> mine = Outcomes<Stats>::nothing();
        if (label_ >= 0) its_logit_ = compared(label_);  // by all: one of them may write there, behind the next barrier
        for (int number = 0; number < windows_; ++number) {
            if (number > 0) __syncthreads();
            const Window<S> window = Window<S>::of(w_, student_, number);
            if (a_.state_given && number + 1 < windows_) continue;  // nothing but the bits, of the last one, is needed
            window.mark(w_, row_, label_);
            if (!a_.state_given) add_rest(window, mine.rest);
        }
        for_topk(w_.p, row_, [&](int column, float) {
            ++mine.listed;
            mine.the_label += column == label_;
            if (!a_.state_given) mine.add_topk(compared(column), w_.how.factor);
        });
        return mine;
    }

    __device__ __forceinline__ void add_rest(const Window<S>& window, Total& rest) const {
        walk<false, false>(window.part, [&](int group, const Word16& word) {
            float x[Group<S>::columns];
            Group<S>::unpack(word, x);
            if (Stats && stats_) rest.rank(x, window.begin + window.part.cut.template column_of_group<S>(group));
            const unsigned taken = window.taken_of_group(group);
#pragma unroll
            for (int i = 0; i < Group<S>::columns; ++i) {
                x[i] = taken >> i & 1 ? -infinite : as_compared<Lean>(x[i], w_.how);
            }
            rest.add(x, w_.how.factor);
        });
        const int edge = static_cast<int>(threadIdx.x);
        if (edge >= window.part.cut.edges) return;
        const int column = window.begin + window.part.cut.template column_of_edge<S>(edge);
        if (Stats && stats_) rest.rank_edge(widen(student_[column]), column);
        const float x[1] = {window.edge_taken(edge) ? -infinite : compared(column)};
        rest.add(x, w_.how.factor);
    }

    // The listed columns and a label that is not: what they add, and their gradient.
    __device__ __forceinline__ TopkSums own_outcomes(MeanLog2& mean) const {
        TopkSums mine = TopkSums::nothing();
        const float alpha = w_.p.alpha;
        for_topk(w_.p, row_, [&](int column, float log_p) {
            const float x = compared(column), exponent = fmaf(x, w_.how.factor, -totals_.shift);
            const float q = power_of_2(exponent) * totals_.inverse, p = power_of_2(log_p * log2ef);
            mine.kl += kl_term(p, q, fmaf(exponent + log2_inverse_, ln2f, -log_p));
            if (column != label_) mine.others += q;
            add_entropy(exponent, q, mean);
            const float of_kl = alpha > 0.0f ? alpha * (q - p) : 0.0f;
            store(column, of_kl + of_label_ * (q - (column == label_ ? 1.0f : 0.0f)), x);
        });
        if (leads_ && totals_.label_alone) {
            const float exponent = fmaf(its_logit_, w_.how.factor, -totals_.shift),
                        q = power_of_2(exponent) * totals_.inverse;
            add_entropy(exponent, q, mean);
            const float from_tail = power_of_2(log_p_tail_ * log2ef) * (totals_.label_power(w_) / totals_.tail_total);
            const float of_kl = alpha > 0.0f && its_logit_ != -infinite ? alpha * (q - from_tail) : 0.0f;
            store(label_, of_kl + of_label_ * (q - 1.0f), its_logit_);
        }
        return mine;
    }
    __device__ __forceinline__ void store(int column, float g, float x) const {
        if (grad_) grad_[column] = narrow<S>(weight_ == 0.0f ? 0.0f : through_cap<Lean>(weight_ * g, x, w_.how));
    }
    __device__ __forceinline__ void add_entropy(float exponent, float q, MeanLog2& mean) const {
        if (Stats && stats_) mean.sum = fmaf(q, fmaxf(exponent + log2_inverse_, -1.0e30f), mean.sum);
    }

    // The gradient of the rest is one number times q; and the entropy.
    __device__ __forceinline__ void second_pass(MeanLog2& mean) const {
        const float alpha = w_.p.alpha, excess = fmaf(log_p_tail_, log2ef, -log2_q_tail_);  // log2(p_tail / q_tail)
        float by = alpha + of_label_ - (alpha > 0.0f ? alpha * power_of_2(fminf(excess, 60.0f)) : 0.0f);
        float by_shift = totals_.shift;
        by *= totals_.inverse;
        if (alpha > 0.0f && excess > 60.0f) {  // q_tail may be too small for a float; what matters is p_tail
            by_shift = totals_.tail_shift;
            by = -alpha * power_of_2(log_p_tail_ * log2ef) / totals_.tail_total;
        }
        by = weight_ == 0.0f || totals_.tail_total == 0.0f ? 0.0f : by * weight_;
        const auto one = [&](float logit, bool taken) {
            const float x = as_compared<Lean>(logit, w_.how);
            if (Stats && stats_ && !taken) {
                const float exponent = fmaf(x, w_.how.factor, -totals_.shift);
                add_entropy(exponent, power_of_2(exponent) * totals_.inverse, mean);
            }
            const float g = power_of_2(fmaf(x, w_.how.factor, -by_shift)) * by;
            return by == 0.0f ? 0.0f : through_cap<Lean>(g, x, w_.how);
        };
        for (int number = windows_ - 1; number >= 0; --number) {
            const Window<S> window = Window<S>::of(w_, student_, number);
            if (number < windows_ - 1) {  // the bits of the last one are there
                __syncthreads();
                window.mark(w_, row_, label_);
            }
            const Cut cut = window.part.cut;
            const GradientRow<S> gradient{grad_ ? grad_ + window.begin : nullptr, Lean || w_.grad_wide, cut};
            walk<true, true>(window.part, [&](int group, const Word16& word) {
                float x[Group<S>::columns];
                Group<S>::unpack(word, x);
                const unsigned taken = window.taken_of_group(group);
#pragma unroll
                for (int i = 0; i < Group<S>::columns; ++i) x[i] = one(x[i], taken >> i & 1);
                if (!grad_) return;
                if (!taken) return gradient.store(group, x);
                S* const first = gradient.first + cut.template column_of_group<S>(group);
#pragma unroll
                for (int i = 0; i < Group<S>::columns; ++i) {
                    if (!(taken >> i & 1)) first[i] = narrow<S>(x[i]);
                }
            });
            const int edge = static_cast<int>(threadIdx.x);
            if (edge < cut.edges && !window.edge_taken(edge)) {
                const int column = window.begin + cut.template column_of_edge<S>(edge);
                const float g = one(widen(student_[column]), false);
                if (grad_) grad_[column] = narrow<S>(g);
            }
        }
    }

    __device__ __forceinline__ void write(const TopkSums& sums) const {
        const float alpha = w_.p.alpha;
        float value = 0.0f;
        if (alpha > 0.0f) {
            const float q_tail = power_of_2(log2_q_tail_), p_tail = power_of_2(log_p_tail_ * log2ef);
            const float of_tail = kl_term(p_tail, q_tail, fmaf(log2_q_tail_, ln2f, -log_p_tail_));
            value = alpha * (sums.kl + (totals_.has_tail ? of_tail : 0.0f));
        }
        if (label_ >= 0) {
            const float rest = totals_.rest_total * power_of_2(totals_.rest_shift - totals_.shift) * totals_.inverse;
            const float exponent = fmaf(its_logit_, w_.how.factor, -totals_.shift),
                        q = power_of_2(exponent) * totals_.inverse;
            value += of_label_ * (rest + sums.others + kl_term(1.0f, q, (exponent + log2_inverse_) * ln2f));
        }
        a_.value[row_] = value;
        if (a_.state) totals_.write_state(a_, row_);
    }

    const TopkWork& w_;
    const SpanKlParams& a_;
    const std::int64_t row_;
    const S* const student_;
    S* const grad_;
    const bool stats_, leads_;
    const int windows_, label_;
    float its_logit_ = -infinite;
    TopkTotals totals_;
    float log2_inverse_, log2_q_tail_, log_p_tail_;
    float weight_;    // of the row, by the logit
    float of_label_;  // the share of the cross-entropy
};

template <typename S, bool Lean, bool Stats>
__global__ void __launch_bounds__(512, Lean ? 2 : 1) topk_rows_kernel(const TopkWork w) {
    Exchange exchange;
    const SpanKlParams& a = w.p.base;
    const int rows = static_cast<int>(a.rows), read = w.index[rows], blocks = static_cast<int>(gridDim.x);
    int position = static_cast<int>(blockIdx.x);
    for (; position < read; position += blocks) TopkRow<S, Lean, Stats>(w, w.index[position]).run(exchange);
    if (!a.grad.data) return;
    for (; position < rows; position += blocks) {
        S* const grad = static_cast<S*>(a.grad.data) + a.grad.offset(w.index[position]);
        fill_zeros(grad, static_cast<int>(a.student_columns));
    }
}

}  // namespace sad::cuda
