// The kernels for few long rows, cut into slices with a block each, so that all of a card works on them; and the gradient of
// rows whose log-sum-exps are known. Each launch waits for the one before it: nothing spins, nothing is atomic, and shares
// are merged in the order of the slices.
#pragma once

#include "row_kernels.cuh"

namespace sad::cuda {

// One slice of one row.
struct Slice {
    int position;  // in the index
    int begin, end;

    static __device__ __forceinline__ Slice of(const Work& w, int task) {
        const int begin = task % w.slices * w.slice_columns;
        return {task / w.slices, begin, min(begin + w.slice_columns, static_cast<int>(w.a.vocab))};
    }
};

// Field k of a row's slices, one for each lane of a warp at a time.
__device__ __forceinline__ std::int64_t slice_field(const Work& w, int field, int position) {
    return (field * w.a.rows + position) * w.slices;
}

// Shift and total (and argmax) of a row from those of its slices, known to all lanes.
template <bool Argmax>
__device__ __forceinline__ Totals<Argmax> merged_totals(const Work& w, int position) {
    const int lane = static_cast<int>(threadIdx.x) % warp_width;
    Totals<Argmax> mine = Totals<Argmax>::nothing();
    for (int side = 0; side < 2; ++side) {
        Total& total = side == 0 ? mine.student : mine.teacher;
        for (int slice = lane; slice < w.slices; slice += warp_width) {
            Total part = Total::nothing();
            part.shift = w.totals[slice_field(w, 2 * side, position) + slice];
            part.total = w.totals[slice_field(w, 2 * side + 1, position) + slice];
            const float shift = fmaxf(total.shift, part.shift);
            total.total = total.total * power_of_2(total.shift - shift) + part.total * power_of_2(part.shift - shift);
            total.shift = shift;
            if (Argmax) {
                const std::int64_t at = slice_field(w, side, position) + slice;
                if (w.best[at] > total.best) total.best = w.best[at], total.column = w.best_column[at];
            }
        }
    }
    mine.merge_lanes();
    return mine;
}

template <typename S, bool Stats>
__global__ void __launch_bounds__(512, 1) slice_totals_kernel(const Work w) {
    Exchange exchange;
    const Slice slice = Slice::of(w, static_cast<int>(blockIdx.x));
    if (slice.position >= w.index[w.a.rows]) return;
    const PairInMemory<S> pair = pair_of<S, false>(w, w.index[slice.position], slice.begin, slice.end);
    const Totals<Stats> whole = totals_pass<S, false, Stats>(w, pair, Edge::of(pair), Stats, exchange,
                                                             [&](const auto& f) { walk<false, false>(pair, f); });
    if (threadIdx.x != 0) return;
    const int number = slice.begin / w.slice_columns;
    for (int side = 0; side < 2; ++side) {
        const Total& total = side == 0 ? whole.student : whole.teacher;
        w.totals[slice_field(w, 2 * side, slice.position) + number] = total.shift;
        w.totals[slice_field(w, 2 * side + 1, slice.position) + number] = total.total;
        if (Stats) {
            w.best[slice_field(w, side, slice.position) + number] = total.best;
            w.best_column[slice_field(w, side, slice.position) + number] = slice.begin + total.argmax();
        }
    }
}

template <typename S, bool Stats>
__global__ void __launch_bounds__(512, 1) slice_values_kernel(const Work w) {
    Exchange exchange;
    const SpanKlParams& a = w.a;
    const Slice slice = Slice::of(w, static_cast<int>(blockIdx.x));
    const std::int64_t row = w.index[slice.position];
    const bool here = w.how.divergence == Divergence::forward;  // the others' gradient comes later
    S* const grad = here ? gradient_of<S>(w, row) : nullptr;
    const bool reads = slice.position < w.index[a.rows];
    if (reads) {
        Softmaxes softmaxes;
        if (a.lse_given) {
            softmaxes = Softmaxes::of(a.lse_given[row], a.lse_given[a.rows + row]);
        } else {
            const Totals<false> whole = merged_totals<false>(w, slice.position);
            softmaxes = Softmaxes::of(whole.student, whole.teacher);
        }
        const PairInMemory<S> pair = pair_of<S, false>(w, row, slice.begin, slice.end);
        const GradientRow<S> gradient{grad ? grad + slice.begin : nullptr, w.grad_wide, pair.cut};
        const Sums sums =
            divergence_pass<S, false, Stats>(w, pair, Edge::of(pair), Stats, softmaxes, grad ? a.weights[row] : 0.0f,
                                             gradient, exchange, [&](const auto& f) { walk<true, true>(pair, f); });
        if (threadIdx.x == 0) {
            const float fields[4] = {sums.value, sums.pull, sums.s_mean_log2, sums.t_mean_log2};
            const int number = slice.begin / w.slice_columns;
            for (int k = 0; k < 4; ++k) w.sums[slice_field(w, k, slice.position) + number] = fields[k];
        }
    }
    if (grad) {
        const int end = slice.end == a.vocab ? static_cast<int>(a.student_columns) : slice.end;
        const int written = reads ? slice.end : slice.begin;
        fill_zeros(grad + written, end - written);
    }
}

// A warp for each row that is read.
template <bool Stats>
__global__ void combine_slices_kernel(const Work w) {
    const SpanKlParams& a = w.a;
    const int position = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
    if (position >= w.index[a.rows]) return;
    const std::int64_t row = w.index[position];
    if (!a.lse_given || Stats) {
        const Totals<Stats> whole = merged_totals<Stats>(w, position);
        if (lane == 0 && !a.lse_given) write_log_sum_exps(a, row, whole.student.log_sum_exp(), whole.teacher.log_sum_exp());
        if (lane == 0 && Stats) write_argmax(a, row, whole.student.argmax(), whole.teacher.argmax());
    }
    if (lane == 0 && a.lse_given) write_log_sum_exps(a, row, a.lse_given[row], a.lse_given[a.rows + row]);
    if (!a.value) return;
    float fields[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int k = 0; k < 4; ++k) {
        for (int slice = lane; slice < w.slices; slice += warp_width)
            fields[k] += w.sums[slice_field(w, k, position) + slice];
    }
    Sums sums{fields[0], fields[1], fields[2], fields[3]};
    sums.merge_lanes();
    if (lane == 0) write_sums(a, w.how.divergence, row, sums);
}

// The gradient of rows whose `state` is known: one pass, by slices, on a grid that stays.
template <typename S, bool Lean>
__global__ void __launch_bounds__(512, Lean ? 2 : 1) gradient_kernel(const Work w) {
    const SpanKlParams& a = w.a;
    const int read = w.index[a.rows], tasks = static_cast<int>(a.rows) * w.slices;
    for (int task = static_cast<int>(blockIdx.x); task < tasks; task += static_cast<int>(gridDim.x)) {
        const Slice slice = Slice::of(w, task);
        const std::int64_t row = w.index[slice.position];
        S* const grad = gradient_of<S>(w, row);
        int written = slice.begin;
        if (slice.position < read && a.weights[row] != 0.0f) {
            const PairInMemory<S> pair = pair_of<S, Lean>(w, row, slice.begin, slice.end);
            const Softmaxes softmaxes = Softmaxes::of(a.state_given[row], a.state_given[a.rows + row]);
            const float mean_pull = Lean ? 0.0f : a.state_given[2 * a.rows + row];
            gradient_pass<S, Lean>(w, pair, Edge::of(pair), softmaxes, a.weights[row], mean_pull,
                                   GradientRow<S>{grad + slice.begin, Lean || w.grad_wide, pair.cut},
                                   [&](const auto& f) { walk<false, true>(pair, f); });
            written = slice.end;
        }
        const int end = slice.end == a.vocab ? static_cast<int>(a.student_columns) : slice.end;
        fill_zeros(grad + written, end - written);
    }
}

// Multiplies the rows of non-zero kind; nearly always by 1, and then done at once.
template <typename S>
__global__ void __launch_bounds__(512, 2) scale_rows_kernel(Rows<void> grad, const std::uint8_t* kinds, const float* factor,
                                                            int rows, int columns, int slices, int slice_columns) {
    const float by = *factor;
    if (by == 1.0f) return;
    const int tasks = rows * slices, thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    for (int task = static_cast<int>(blockIdx.x); task < tasks; task += static_cast<int>(gridDim.x)) {
        const int row = task / slices, begin = task % slices * slice_columns;
        if (kinds[row] == 0) continue;
        S* const part = static_cast<S*>(grad.data) + grad.offset(row) + begin;
        const Cut cut = Cut::of(part, min(slice_columns, columns - begin));
        for (int group = thread; group < cut.groups; group += threads) {
            Word16* const p = reinterpret_cast<Word16*>(part + cut.column_of_group<S>(group));
            float g[Group<S>::columns];
            Group<S>::unpack(load_once(p), g);
#pragma unroll
            for (int i = 0; i < Group<S>::columns; ++i) g[i] *= by;
            store_once(p, Group<S>::pack(g));
        }
        if (thread < cut.edges) {
            S& g = part[cut.column_of_edge<S>(thread)];
            g = narrow<S>(widen(g) * by);
        }
    }
}

}  // namespace sad::cuda
