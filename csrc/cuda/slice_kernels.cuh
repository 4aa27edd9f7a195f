// The kernels for few long rows: each row is split into slices, one block per slice, so that all SMs have work. Also the
// gradient of rows whose state is known, and the scaling of a gradient. Each kernel starts after the one before it, so there
// are no spin loops and no atomics. Partial results are merged in the order of the slices.
#pragma once

#include "row_kernels.cuh"

namespace sad::cuda {

// A slice of a row: columns [begin, end).
struct Slice {
    int position;  // of the row in the index
    int begin, end;

    static __device__ __forceinline__ Slice of(const LaunchArgs& args, int task) {
        const int begin = task % args.slices * args.slice_columns;
        return {task / args.slices, begin, min(begin + args.slice_columns, static_cast<int>(args.params.vocab))};
    }
};

// Returns the index of the first slice of a row in field `field` of the partial results.
__device__ __forceinline__ std::int64_t slice_field(const LaunchArgs& args, int field, int position) {
    return (field * args.params.rows + position) * args.slices;
}

// Merges the sums (and the argmax) of the slices of a row. All lanes get the result.
template <bool Argmax>
__device__ __forceinline__ ExpSums<Argmax> merged_exp_sums(const LaunchArgs& args, int position) {
    const int lane = static_cast<int>(threadIdx.x) % warp_width;
    ExpSums<Argmax> mine = ExpSums<Argmax>::identity();
    for (int side = 0; side < 2; ++side) {
        ExpSum& sum = side == 0 ? mine.student : mine.teacher;
        for (int slice = lane; slice < args.slices; slice += warp_width) {
            ExpSum part = ExpSum::identity();
            part.shift = args.exp_sums[slice_field(args, 2 * side, position) + slice];
            part.sum = args.exp_sums[slice_field(args, 2 * side + 1, position) + slice];
            const float shift = fmaxf(sum.shift, part.shift);
            sum.sum = sum.sum * exp2_approx(sum.shift - shift) + part.sum * exp2_approx(part.shift - shift);
            sum.shift = shift;
            if (Argmax) {
                const std::int64_t at = slice_field(args, side, position) + slice;
                if (args.max_logits[at] > sum.max_logit)
                    sum.max_logit = args.max_logits[at], sum.argmax_column = args.argmax_columns[at];
            }
        }
    }
    mine.reduce_warp();
    return mine;
}

template <typename S, bool Stats>
__global__ void __launch_bounds__(512, 1) slice_totals_kernel(const LaunchArgs args) {
    Reducer reducer;
    const Slice slice = Slice::of(args, static_cast<int>(blockIdx.x));
    if (slice.position >= args.index[args.params.rows]) return;
    const RowPair<S> pair = pair_of<S, false>(args, args.index[slice.position], slice.begin, slice.end);
    const ExpSums<Stats> whole = exp_sum_pass<S, false, Stats>(
        args, pair, EdgeColumn::of(pair), Stats, reducer, [&](const auto& f) { for_each_group<false, false>(pair, f); });
    if (threadIdx.x != 0) return;
    const int number = slice.begin / args.slice_columns;
    for (int side = 0; side < 2; ++side) {
        const ExpSum& sum = side == 0 ? whole.student : whole.teacher;
        args.exp_sums[slice_field(args, 2 * side, slice.position) + number] = sum.shift;
        args.exp_sums[slice_field(args, 2 * side + 1, slice.position) + number] = sum.sum;
        if (Stats) {
            args.max_logits[slice_field(args, side, slice.position) + number] = sum.max_logit;
            args.argmax_columns[slice_field(args, side, slice.position) + number] = slice.begin + sum.argmax();
        }
    }
}

template <typename S, bool Stats>
__global__ void __launch_bounds__(512, 1) slice_values_kernel(const LaunchArgs args) {
    Reducer reducer;
    const SpanKlParams& params = args.params;
    const Slice slice = Slice::of(args, static_cast<int>(blockIdx.x));
    const std::int64_t row = args.index[slice.position];
    const bool writes_gradient = args.config.divergence == Divergence::forward;  // else `gradient_kernel` does
    S* const grad = writes_gradient ? gradient_of<S>(args, row) : nullptr;
    const bool reads = slice.position < args.index[params.rows];
    if (reads) {
        Softmaxes softmaxes;
        if (params.lse_given) {
            softmaxes = Softmaxes::of(params.lse_given[row], params.lse_given[params.rows + row]);
        } else {
            const ExpSums<false> whole = merged_exp_sums<false>(args, slice.position);
            softmaxes = Softmaxes::of(whole.student, whole.teacher);
        }
        const RowPair<S> pair = pair_of<S, false>(args, row, slice.begin, slice.end);
        const GradientRow<S> gradient{grad ? grad + slice.begin : nullptr, args.grad_aligned, pair.layout};
        const DivergenceSums sums = divergence_pass<S, false, Stats>(
            args, pair, EdgeColumn::of(pair), Stats, softmaxes, grad ? params.weights[row] : 0.0f, gradient, reducer,
            [&](const auto& f) { for_each_group<true, true>(pair, f); });
        if (threadIdx.x == 0) {
            const float fields[4] = {sums.value, sums.mean_dlogp, sums.s_mean_log2, sums.t_mean_log2};
            const int number = slice.begin / args.slice_columns;
            for (int k = 0; k < 4; ++k) args.divergence_sums[slice_field(args, k, slice.position) + number] = fields[k];
        }
    }
    if (grad) {
        const int end = slice.end == params.vocab ? static_cast<int>(params.student_columns) : slice.end;
        const int written = reads ? slice.end : slice.begin;
        fill_zeros(grad + written, end - written);
    }
}

// Merges the partial results, one warp per row that is read.
template <bool Stats>
__global__ void combine_slices_kernel(const LaunchArgs args) {
    const SpanKlParams& params = args.params;
    const int position = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
    if (position >= args.index[params.rows]) return;
    const std::int64_t row = args.index[position];
    if (!params.lse_given || Stats) {
        const ExpSums<Stats> whole = merged_exp_sums<Stats>(args, position);
        if (lane == 0 && !params.lse_given)
            write_log_sum_exps(params, row, whole.student.log_sum_exp(), whole.teacher.log_sum_exp());
        if (lane == 0 && Stats) write_argmax(params, row, whole.student.argmax(), whole.teacher.argmax());
    }
    if (lane == 0 && params.lse_given)
        write_log_sum_exps(params, row, params.lse_given[row], params.lse_given[params.rows + row]);
    if (!params.value) return;
    float fields[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int k = 0; k < 4; ++k) {
        for (int slice = lane; slice < args.slices; slice += warp_width)
            fields[k] += args.divergence_sums[slice_field(args, k, position) + slice];
    }
    DivergenceSums sums{fields[0], fields[1], fields[2], fields[3]};
    sums.reduce_warp();
    if (lane == 0) write_sums(params, args.config.divergence, row, sums);
}

// Writes the gradient of rows whose `state_given` is known, in one pass over slices, on a persistent grid.
template <typename S, bool Lean>
__global__ void __launch_bounds__(512, Lean ? 2 : 1) gradient_kernel(const LaunchArgs args) {
    const SpanKlParams& params = args.params;
    const int read = args.index[params.rows], tasks = static_cast<int>(params.rows) * args.slices;
    for (int task = static_cast<int>(blockIdx.x); task < tasks; task += static_cast<int>(gridDim.x)) {
        const Slice slice = Slice::of(args, task);
        const std::int64_t row = args.index[slice.position];
        S* const grad = gradient_of<S>(args, row);
        int written = slice.begin;
        if (slice.position < read && params.weights[row] != 0.0f) {
            const RowPair<S> pair = pair_of<S, Lean>(args, row, slice.begin, slice.end);
            const Softmaxes softmaxes = Softmaxes::of(params.state_given[row], params.state_given[params.rows + row]);
            const float mean_dlogp = Lean ? 0.0f : params.state_given[2 * params.rows + row];
            gradient_pass<S, Lean>(args, pair, EdgeColumn::of(pair), softmaxes, params.weights[row], mean_dlogp,
                                   GradientRow<S>{grad + slice.begin, Lean || args.grad_aligned, pair.layout},
                                   [&](const auto& f) { for_each_group<false, true>(pair, f); });
            written = slice.end;
        }
        const int end = slice.end == params.vocab ? static_cast<int>(params.student_columns) : slice.end;
        fill_zeros(grad + written, end - written);
    }
}

// Multiplies the rows with kinds != 0 by a factor. Returns at once if the factor is 1, which is the common case.
template <typename S>
__global__ void __launch_bounds__(512, 2) scale_rows_kernel(Rows<void> grad, const std::uint8_t* kinds, const float* factor,
                                                            int rows, int columns, int slices, int slice_columns) {
    const float number = *factor;
    if (number == 1.0f) return;
    const int tasks = rows * slices, thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    for (int task = static_cast<int>(blockIdx.x); task < tasks; task += static_cast<int>(gridDim.x)) {
        const int row = task / slices, begin = task % slices * slice_columns;
        if (kinds[row] == 0) continue;
        S* const part = static_cast<S*>(grad.data) + grad.offset(row) + begin;
        const GroupLayout layout = GroupLayout::of(part, min(slice_columns, columns - begin));
        for (int group = thread; group < layout.groups; group += threads) {
            Bytes16* const p = reinterpret_cast<Bytes16*>(part + layout.column_of_group<S>(group));
            float g[Group<S>::columns];
            Group<S>::unpack(load_streaming(p), g);
#pragma unroll
            for (int i = 0; i < Group<S>::columns; ++i) g[i] *= number;
            store_streaming(p, Group<S>::pack(g));
        }
        if (thread < layout.edges) {
            S& g = part[layout.column_of_edge<S>(thread)];
            g = narrow<S>(widen(g) * number);
        }
    }
}

}  // namespace sad::cuda
