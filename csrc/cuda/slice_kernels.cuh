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

// Merges the log-sums of the slices of a row. All lanes get the result.
__device__ __forceinline__ LogSum merged_log_sum(const LaunchArgs& args, int position, int side, float factor) {
    const float* const origins = args.log_sums + slice_field(args, 2 * side, position);
    const float* const log2_sums = args.log_sums + slice_field(args, 2 * side + 1, position);
    const int lane = static_cast<int>(threadIdx.x) % warp_width;
    float origin = -largest_float, sum = 0.0f;
    for (int slice = lane; slice < args.slices; slice += warp_width) {
        if (log2_sums[slice] != -infinite) origin = fmaxf(origin, origins[slice]);
    }
    origin = warp_max(origin);
    for (int slice = lane; slice < args.slices; slice += warp_width) {
        if (log2_sums[slice] != -infinite) sum += exp2_approx(fmaf(origins[slice] - origin, factor, log2_sums[slice]));
    }
    return LogSum::of(origin, warp_sum(sum));
}
__device__ __forceinline__ LogSums merged_log_sums(const LaunchArgs& args, int position) {
    return {merged_log_sum(args, position, 0, args.config.student.factor),
            merged_log_sum(args, position, 1, args.config.teacher.factor)};
}

// Merges the argmax of the slices of a row. All lanes get the result.
__device__ __forceinline__ int merged_argmax(const LaunchArgs& args, int position, int side) {
    const std::int64_t first = slice_field(args, side, position);
    ExpSum best = ExpSum::identity();
    for (int slice = static_cast<int>(threadIdx.x) % warp_width; slice < args.slices; slice += warp_width) {
        best.rank_edge(args.max_logits[first + slice], args.argmax_columns[first + slice]);
    }
    best.reduce_warp<true>();
    return best.argmax();
}

template <typename S, bool Stats>
__global__ void __launch_bounds__(512, 1) slice_totals_kernel(const __grid_constant__ LaunchArgs args) {
    Reducer reducer;
    const Slice slice = Slice::of(args, static_cast<int>(blockIdx.x));
    if (slice.position >= args.index.read[0]) return;
    const std::int64_t row = args.index.entries[slice.position];
    const RowPair<S> pair = pair_of<S, Case::general>(args, row, slice.begin, slice.end);
    const ExpSums<Stats> found = exp_sum_pass<S, Case::general, Stats>(
        args, pair, EdgeColumn::of(pair), Stats, reducer, [&](const auto& f) { for_each_group<false, false>(pair, f); });
    const LogSums log_sums = needs_exact(found, slice.end - slice.begin)
                                 ? exact_log_sums<S>(args, row, slice.begin, slice.end, reducer)
                                 : log_sums_of(found, args.config);
    if (threadIdx.x != 0) return;
    const int number = slice.begin / args.slice_columns;
    for (int side = 0; side < 2; ++side) {
        const LogSum& log_sum = side == 0 ? log_sums.student : log_sums.teacher;
        args.log_sums[slice_field(args, 2 * side, slice.position) + number] = log_sum.origin;
        args.log_sums[slice_field(args, 2 * side + 1, slice.position) + number] = log_sum.log2_sum;
        if (Stats) {
            const ExpSum& sum = side == 0 ? found.student : found.teacher;
            args.max_logits[slice_field(args, side, slice.position) + number] = sum.max_logit;
            args.argmax_columns[slice_field(args, side, slice.position) + number] = slice.begin + sum.argmax();
        }
    }
}

template <typename S, bool Stats>
__global__ void __launch_bounds__(512, 1) slice_values_kernel(const __grid_constant__ LaunchArgs args) {
    Reducer reducer;
    const SpanKlParams& params = args.params;
    const Slice slice = Slice::of(args, static_cast<int>(blockIdx.x));
    const std::int64_t row = args.index.entries[slice.position];
    const bool writes_gradient = args.config.divergence == Divergence::forward;  // else `gradient_kernel` does
    S* const grad = writes_gradient ? gradient_of<S>(args, row) : nullptr;
    const bool reads = slice.position < args.index.read[0];
    const float weight = grad && reads ? params.weights[row] : 0.0f;  // the gradient of weight 0 is 0, also if it were NaN
    if (reads) {
        const LogSums log_sums = params.lse_given ? stored_log_sums(params.lse_given, params.rows, row, false)
                                                  : merged_log_sums(args, slice.position);
        const RowPair<S> pair = pair_of<S, Case::general>(args, row, slice.begin, slice.end);
        const GradientRow<S> gradient{grad ? grad + slice.begin : nullptr, weight != 0.0f, args.grad_aligned, pair.layout};
        const DivergenceSums sums =
            divergence_pass<S, Case::general, Stats>(args, pair, EdgeColumn::of(pair), Stats, log_sums, weight, gradient,
                                                     reducer, [&](const auto& f) { for_each_group<true, true>(pair, f); });
        if (threadIdx.x == 0) {
            const float fields[4] = {sums.value, sums.mean_dlogp, sums.s_mean_log2, sums.t_mean_log2};
            const int number = slice.begin / args.slice_columns;
            for (int k = 0; k < 4; ++k) args.divergence_sums[slice_field(args, k, slice.position) + number] = fields[k];
        }
    }
    if (grad) {
        const int end = slice.end == params.vocab ? static_cast<int>(params.student_columns) : slice.end;
        const int written = weight == 0.0f ? slice.begin : slice.end;
        fill_zeros(grad + written, end - written);
    }
}

// Merges the partial results, one warp per row that is read.
template <bool Stats>
__global__ void combine_slices_kernel(const __grid_constant__ LaunchArgs args) {
    const SpanKlParams& params = args.params;
    const int position = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
    if (position >= args.index.read[0]) return;
    const std::int64_t row = args.index.entries[position];
    if (Stats) {
        const int student = merged_argmax(args, position, 0), teacher = merged_argmax(args, position, 1);
        if (lane == 0) write_argmax(params, row, student, teacher);
    }
    const LogSums log_sums =
        params.lse_given ? stored_log_sums(params.lse_given, params.rows, row, false) : merged_log_sums(args, position);
    if (lane == 0) write_log_sums(params, row, log_sums);
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
template <typename S, Case C>
__global__ void __launch_bounds__(512, is_common(C) ? 2 : 1) gradient_kernel(const __grid_constant__ LaunchArgs args) {
    const SpanKlParams& params = args.params;
    const int read = args.index.read[0], tasks = static_cast<int>(params.rows) * args.slices;
    for (int task = static_cast<int>(blockIdx.x); task < tasks; task += static_cast<int>(gridDim.x)) {
        const Slice slice = Slice::of(args, task);
        const std::int64_t row = args.index.entries[slice.position];
        S* const grad = gradient_of<S>(args, row);
        int written = slice.begin;
        if (slice.position < read && params.weights[row] != 0.0f) {
            const RowPair<S> pair = pair_of<S, C>(args, row, slice.begin, slice.end);
            const LogSums log_sums = stored_log_sums(params.state_given, params.rows, row, true);
            const float mean_dlogp = C == Case::forward ? 0.0f : params.state_given[2 * params.rows + row];
            gradient_pass<S, C>(args, pair, EdgeColumn::of(pair), log_sums, params.weights[row], mean_dlogp,
                                GradientRow<S>{grad + slice.begin, true, is_common(C) || args.grad_aligned, pair.layout},
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
