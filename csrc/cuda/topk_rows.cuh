// The losses against top-k columns and labels, one block per row. `TopkSpanKlParams` has the formulas. The first pass reads
// the row and computes its sums. Then the threads process the top-k columns and the label. The second pass reads the row
// again, from L2, and writes the gradient.
//
// Both passes over the row leave out the top-k columns and the label. Shared memory holds one bit per column for this. A row
// with more columns than bits is processed in windows. The tail has an origin of its own, so that a q_tail of 1e-30 is
// precise.
#pragma once

#include "topk_sums.cuh"

namespace sad::cuda {

template <typename S, bool Lean, bool Stats>
class TopkRow {
 public:
    __device__ __forceinline__ TopkRow(const TopkLaunchArgs& args, int row)
        : args_(args),
          params_(args.topk.base),
          row_(row),
          student_(static_cast<const S*>(row_of(params_.student.rows, row_, 0))),
          grad_(params_.grad.data ? static_cast<S*>(params_.grad.data) + params_.grad.offset(row_) : nullptr),
          stats_(Stats && params_.argmax != nullptr),
          is_first_thread_(threadIdx.x == 0),
          windows_((static_cast<int>(params_.vocab) - 1) / args_.window + 1),
          label_(args_.topk.labels ? args_.topk.labels[row_] : -1) {}

    // Computes the row at a position of the index.
    __device__ __forceinline__ void run(int position, Reducer& reducer) {
        const FirstPassSums<Stats> found = reducer.reduce_block(first_pass());
        const float factor = args_.exponent.factor;
        RelativeSum rest = RelativeSum::of_shift(found.rest.shift, found.rest.sum, args_.exponent);
        RelativeSum topk = RelativeSum::of_shift(found.topk_shift, found.topk_sum, args_.exponent);
        if (!params_.state_given && found.out_of_bounds()) {
            if constexpr (Lean) {
                if (is_first_thread_) args_.index.defer(position, row_);
                grad_ = nullptr;
            } else {
                const ExactTopkSums exact = exact_topk_sums<S>(args_, row_, label_, reducer);
                rest = exact.rest, topk = exact.topk;
            }
        }
        softmax_ =
            TopkSoftmax::of(args_, row_, rest, topk, found.num_topk, label_ >= 0 && found.label_in_topk == 0, label_logit_);
        q_rest_ = softmax_.rest.sum * exp2_approx(softmax_.all.log2_probability(softmax_.rest.origin, factor));
        if (is_first_thread_ && params_.state) softmax_.write_state(params_, row_);
        log2_q_tail_ = log2f(softmax_.tail.sum) + softmax_.all.log2_probability(softmax_.tail.origin, factor);
        log_p_tail_ = args_.topk.log_tail[row_];
        weight_ = grad_ ? params_.weights[row_] * args_.grad_scale : 0.0f;
        ce_share_ = label_ >= 0 ? 1.0f - args_.topk.alpha : 0.0f;
        MeanLog2 mean = MeanLog2::identity();
        const TopkSums mine = topk_pass(mean);
        // Both branches have a barrier: in place, a top-k gradient now lies in a group that other threads read above.
        if (params_.value) {
            const TopkSums whole = reducer.reduce_block(mine);
            if (is_first_thread_) write(whole);
        } else {
            __syncthreads();
        }
        if (!grad_ && !stats_) return;
        second_pass(mean);
        // Both branches have a barrier: afterwards the next row may use the bits.
        if (stats_) {
            mean = reducer.reduce_block(mean);
            if (is_first_thread_) params_.entropies[row_] = entropy(mean.sum), params_.argmax[row_] = found.rest.argmax();
        } else {
            __syncthreads();
        }
        if (!grad_) return;
        const int written = weight_ == 0.0f ? 0 : static_cast<int>(params_.vocab);
        fill_zeros(grad_ + written, static_cast<int>(params_.student_columns) - written);
    }

 private:
    __device__ __forceinline__ float exponent_input_at(int column) const {
        return exponent_input<Lean>(widen(student_[column]), args_.exponent);
    }

    __device__ __forceinline__ FirstPassSums<Stats> first_pass() {
        FirstPassSums<Stats> mine = FirstPassSums<Stats>::identity();
        // All threads read the label's logit before the barrier. After the barrier, one thread may overwrite it.
        if (label_ >= 0) label_logit_ = exponent_input_at(label_);
        for (int number = 0; number < windows_; ++number) {
            if (number > 0) __syncthreads();
            const Window<S> window = Window<S>::of(args_, student_, number);
            if (params_.state_given && number + 1 < windows_) continue;  // only the bits of the last window are needed
            window.mark(args_, row_, label_);
            if (!params_.state_given) add_rest(window, mine.rest);
        }
        for_each_topk(args_.topk, row_, [&](int column, float) {
            ++mine.num_topk;
            mine.label_in_topk += column == label_;
            if (!params_.state_given) mine.add_topk(exponent_input_at(column), args_.exponent.factor);
        });
        return mine;
    }

    __device__ __forceinline__ void add_rest(const Window<S>& window, ExpSum& rest) const {
        const float largest_before = rest.max_logit;
        for_each_group<false, false>(window.part, [&](unsigned at, const Bytes16& bytes, const auto& fetch_next) {
            float x[Group<S>::columns];
            Group<S>::unpack(bytes, x);
            fetch_next();
            if (Stats && stats_) {
                float top = rank_of(x[0]);
#pragma unroll
                for (int i = 1; i < Group<S>::columns; ++i) top = fmaxf(top, rank_of(x[i]));
                rest.rank_group(top, at);
            }
#pragma unroll
            for (int i = 0; i < Group<S>::columns; ++i) x[i] = exponent_input<Lean>(x[i], args_.exponent);
            const unsigned excluded = window.excluded_in_group(at);
            if (excluded) {  // rare, because k is much smaller than the row
#pragma unroll
                for (int i = 0; i < Group<S>::columns; ++i) {
                    if (excluded >> i & 1) x[i] = -infinite;
                }
            }
            rest.add(x, args_.exponent.factor);
        });
        if (Stats && stats_ && rest.max_logit > largest_before) {
            const auto at = static_cast<unsigned>(rest.argmax_column);
            float x[Group<S>::columns];
            Group<S>::unpack(window.part.template fetch<false>(at), x);
            rest.find_column(x, window.begin + window.part.layout.template column_at<S>(at));
        }
        const int edge = static_cast<int>(threadIdx.x);
        if (edge >= window.part.layout.edges) return;
        const int column = window.begin + window.part.layout.template column_of_edge<S>(edge);
        if (Stats && stats_) rest.rank_edge(widen(student_[column]), column);
        const float x[1] = {window.edge_excluded(edge) ? -infinite : exponent_input_at(column)};
        rest.add(x, args_.exponent.factor);
    }

    // Returns the sums over the top-k columns, and writes the gradient of these columns and of the label.
    __device__ __forceinline__ TopkSums topk_pass(MeanLog2& mean) const {
        TopkSums mine = TopkSums::identity();
        const float alpha = args_.topk.alpha;
        for_each_topk(args_.topk, row_, [&](int column, float log_p) {
            const float x = exponent_input_at(column), log2_q = softmax_.all.log2_probability(x, args_.exponent.factor);
            const float q = exp2_approx(log2_q), p = exp2_approx(log_p * log2ef);
            mine.kl += kl_term<false, false>(p, q - p, fmaf(log2_q, ln2f, -log_p));
            if (column != label_) mine.others += q;
            add_entropy(log2_q, q, mean);
            const float kl_gradient = alpha > 0.0f ? alpha * (q - p) : 0.0f;
            store(column, kl_gradient + ce_share_ * (q - (column == label_ ? 1.0f : 0.0f)), x);
        });
        if (is_first_thread_ && softmax_.label_outside_topk) {
            const float log2_q = softmax_.all.log2_probability(label_logit_, args_.exponent.factor), q = exp2_approx(log2_q);
            add_entropy(log2_q, q, mean);
            const float label_power = exp2_approx((label_logit_ - softmax_.tail.origin) * args_.exponent.factor);
            const float tail_gradient = exp2_approx(log_p_tail_ * log2ef) * (label_power / softmax_.tail.sum);
            const float kl_gradient = alpha > 0.0f && label_logit_ != -infinite ? alpha * (q - tail_gradient) : 0.0f;
            store(label_, kl_gradient + ce_share_ * (q - 1.0f), label_logit_);
        }
        return mine;
    }
    __device__ __forceinline__ void store(int column, float g, float x) const {
        if (grad_ && weight_ != 0.0f) grad_[column] = narrow<S>(apply_cap_slope<Lean>(weight_ * g, x, args_.exponent));
    }
    __device__ __forceinline__ void add_entropy(float log2_q, float q, MeanLog2& mean) const {
        if (Stats && stats_) mean.sum = fmaf(q, fmaxf(log2_q, -1.0e30f), mean.sum);
    }

    // Writes the gradient of all other columns, a factor times q, and sums the entropy.
    __device__ __forceinline__ void second_pass(MeanLog2& mean) const {
        const float alpha = args_.topk.alpha, excess = fmaf(log_p_tail_, log2ef, -log2_q_tail_);  // log2(p_tail / q_tail)
        float factor = alpha + ce_share_ - (alpha > 0.0f ? alpha * exp2_approx(fminf(excess, 60.0f)) : 0.0f);
        LogSum divisor = softmax_.all;
        if (alpha > 0.0f && excess > 60.0f) {  // q_tail may underflow; use p_tail instead
            divisor = {softmax_.tail.origin, 0.0f};
            factor = -alpha * exp2_approx(log_p_tail_ * log2ef) / softmax_.tail.sum;
        }
        factor = softmax_.tail.sum == 0.0f ? 0.0f : factor * weight_;
        S* const grad = weight_ == 0.0f ? nullptr : grad_;
        const auto gradient_at = [&](float logit, bool excluded) {
            const float x = exponent_input<Lean>(logit, args_.exponent);
            if (Stats && stats_ && !excluded) {
                const float log2_q = softmax_.all.log2_probability(x, args_.exponent.factor);
                add_entropy(log2_q, exp2_approx(log2_q), mean);
            }
            const float g = exp2_approx(divisor.log2_probability(x, args_.exponent.factor)) * factor;
            return !Lean && factor == 0.0f ? 0.0f : apply_cap_slope<Lean>(g, x, args_.exponent);  // 0 also if q is NaN
        };
        const bool all_zero = Lean && factor == 0.0f;
        for (int number = windows_ - 1; number >= 0; --number) {
            const Window<S> window = Window<S>::of(args_, student_, number);
            if (number < windows_ - 1) {  // the bits of the last window are already set
                __syncthreads();
                window.mark(args_, row_, label_);
            }
            const GroupLayout layout = window.part.layout;
            const GradientRow<S> gradient{grad ? grad + window.begin : nullptr, grad != nullptr, Lean || args_.grad_aligned,
                                          layout};
            const auto store_group = [&](unsigned at, const float (&x)[Group<S>::columns], unsigned excluded) {
                if (!grad) return;
                if (!excluded) return gradient.store(at, x);
                gradient.store_except(at, x, excluded);
            };
            if (all_zero) {
                for_each_group<true, true>(window.part, [&](unsigned at, const Bytes16&, const auto& fetch_next) {
                    fetch_next();
                    const float zeros[Group<S>::columns] = {};
                    store_group(at, zeros, window.excluded_in_group(at));
                });
            } else {
                for_each_group<true, true>(window.part, [&](unsigned at, const Bytes16& bytes, const auto& fetch_next) {
                    float x[Group<S>::columns];
                    Group<S>::unpack(bytes, x);
                    fetch_next();
                    const unsigned excluded = window.excluded_in_group(at);
#pragma unroll
                    for (int i = 0; i < Group<S>::columns; ++i) x[i] = gradient_at(x[i], excluded >> i & 1);
                    store_group(at, x, excluded);
                });
            }
            const int edge = static_cast<int>(threadIdx.x);
            if (edge < layout.edges && !window.edge_excluded(edge)) {
                const int column = window.begin + layout.template column_of_edge<S>(edge);
                const float g = gradient_at(widen(student_[column]), false);
                if (grad) grad[column] = narrow<S>(all_zero ? 0.0f : g);
            }
        }
    }

    __device__ __forceinline__ void write(const TopkSums& sums) const {
        const float alpha = args_.topk.alpha;
        float value = 0.0f;
        if (alpha > 0.0f) {
            const float q_tail = exp2_approx(log2_q_tail_), p_tail = exp2_approx(log_p_tail_ * log2ef);
            const float tail_term = kl_term<false, false>(p_tail, q_tail - p_tail, fmaf(log2_q_tail_, ln2f, -log_p_tail_));
            value = alpha * (sums.kl + (softmax_.has_tail ? tail_term : 0.0f));
        }
        if (label_ >= 0) {
            const float factor = args_.exponent.factor;
            const float log2_q = softmax_.all.log2_probability(label_logit_, factor), q = exp2_approx(log2_q);
            value += ce_share_ * (q_rest_ + sums.others + kl_term<false, false>(1.0f, q - 1.0f, log2_q * ln2f));
        }
        params_.value[row_] = value;
    }

    const TopkLaunchArgs& args_;
    const SpanKlParams& params_;
    const int row_;
    const S* const student_;
    S* grad_;  // null: no gradient, or the row is deferred
    const bool stats_, is_first_thread_;
    const int windows_, label_;
    float label_logit_ = -infinite;
    TopkSoftmax softmax_;
    float q_rest_, log2_q_tail_, log_p_tail_;
    float weight_;    // the weight of the row, times scale / T
    float ce_share_;  // the factor of the cross-entropy
};

template <typename S, bool Lean, bool Stats>
__global__ void __launch_bounds__(512, Lean ? 2 : 1) topk_rows_kernel(const __grid_constant__ TopkLaunchArgs args) {
    const SpanKlParams& params = args.topk.base;
    const int rows = static_cast<int>(params.rows), blocks = static_cast<int>(gridDim.x);
    int position = static_cast<int>(blockIdx.x);
    // The number of rows is read again for every row, so that it takes no register.
    for (; position < (Lean ? args.index.read[0] : args.index.positions()); position += blocks) {
        const int row = Lean ? args.index.entries[position] : args.index.row_at(position);
        if (!Lean && row < 0) continue;
        Reducer reducer;  // one per row, so that its turn takes no register; `Window::mark` separates the rows with barriers
        TopkRow<S, Lean, Stats>(args, row).run(position, reducer);
    }
    if (!params.grad.data || (!Lean && args.index.deferred_only)) return;
    for (; position < rows; position += blocks) {
        S* const grad = static_cast<S*>(params.grad.data) + params.grad.offset(args.index.entries[position]);
        fill_zeros(grad, static_cast<int>(params.student_columns));
    }
}

}  // namespace sad::cuda
