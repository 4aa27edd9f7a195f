// The computation of one row, from logits to outputs. The groups of the row come from global memory (`StreamedGroups`), from
// shared memory (`ResidentGroups`), or from a slice of the row.
#pragma once

#include "row_index.cuh"
#include "rows.cuh"
#include "softmax.cuh"

namespace sad::cuda {

// The arguments of all span-KL kernels.
struct LaunchArgs {
    SpanKlParams params;
    DivergenceConfig config;
    RowIndex index;
    bool teacher_aligned, grad_aligned;  // 16-byte groups start at the same columns as the student's
    int slices, slice_columns;           // slices per row and columns per slice; 1 and vocab unless sliced
    int slots;                           // groups per side that a block holds in shared memory (resident)
    float* log_sums;                     // (4, rows, slices) `LogSum` of student and teacher, by position in the index
    float* max_logits;                   // (2, rows, slices)
    std::int32_t* argmax_columns;        // (2, rows, slices)
    float* divergence_sums;              // (4, rows, slices) the fields of DivergenceSums
};

// `Case` and `Stats` are compile-time options of the kernels. A kernel without `Stats` computes no entropies and no argmax.
template <typename S, Case C>
__device__ __forceinline__ RowPair<S> pair_of(const LaunchArgs& args, std::int64_t row, int begin, int end) {
    const auto* student = static_cast<const S*>(row_of(args.params.student.rows, row, begin));
    const TeacherRow teacher{row_of(args.params.teacher.rows, row, begin), args.params.teacher.rows.dtype};
    return {student, teacher, is_common(C) || args.teacher_aligned, GroupLayout::of(student, end - begin)};
}

template <typename S>
__device__ __forceinline__ S* gradient_of(const LaunchArgs& args, std::int64_t row) {
    return args.params.grad.data ? static_cast<S*>(args.params.grad.data) + args.params.grad.offset(row) : nullptr;
}

template <typename S>
constexpr bool is_short = sizeof(S) == 2;  // whether the value needs the digits of 16-bit logits only

// Adds a group, or one edge column, of both sides. With `Stats`, sets the tops: the largest logits of the group.
template <typename S, Case C, bool Stats, int G, typename Tops>
__device__ __forceinline__ void add_to_sums(const float (&s)[G], const float (&t)[G], const DivergenceConfig& config,
                                            ExpSums<Stats>& exp_sums, Tops& tops) {
    float x[G], y[G];
#pragma unroll
    for (int i = 0; i < G; ++i) {
        x[i] = exponent_input<is_common(C)>(s[i], config.student);
        y[i] = exponent_input<is_common(C)>(t[i], config.teacher);
    }
    float student = exp_sums.student.powers_of(x, config.student.factor);
    float teacher = exp_sums.teacher.powers_of(y, config.teacher.factor);
    if (!(student < largest_powers) || !(teacher < largest_powers)) {
        exp_sums.student.raise_shift(x, config.student.factor);
        exp_sums.teacher.raise_shift(y, config.teacher.factor);
        student = exp_sums.student.powers_of(x, config.student.factor);
        teacher = exp_sums.teacher.powers_of(y, config.teacher.factor);
        tops.set_with_nan(s, t);
    }
    exp_sums.student.sum += student;
    exp_sums.teacher.sum += teacher;
}

// The largest logits of a group.
struct GroupTops {
    float student, teacher;

    template <int G>
    __device__ __forceinline__ void set_with_nan(const float (&s)[G], const float (&t)[G]) {
        student = rank_of(s[0]), teacher = rank_of(t[0]);
#pragma unroll
        for (int i = 1; i < G; ++i) student = fmaxf(student, rank_of(s[i])), teacher = fmaxf(teacher, rank_of(t[i]));
    }
};

// Replaces the groups of `mine` by columns. Only threads that have the largest logit of their warp read the group again.
template <typename S, bool Argmax>
__device__ __forceinline__ void find_argmax_columns(const RowPair<S>& pair, ExpSums<Argmax>& mine) {
    const bool student = mine.student.max_logit == warp_max(mine.student.max_logit);
    const bool teacher = mine.teacher.max_logit == warp_max(mine.teacher.max_logit);
    float s[Group<S>::columns], t[Group<S>::columns];
    if (student && mine.student.max_logit > -infinite) {
        const auto at = static_cast<unsigned>(mine.student.argmax_column);
        pair.unpack(pair.template fetch<false>(at), at, s, t);
        mine.student.find_column(s, pair.layout.template column_at<S>(at));
    }
    if (teacher && mine.teacher.max_logit > -infinite) {
        const auto at = static_cast<unsigned>(mine.teacher.argmax_column);
        pair.unpack(pair.template fetch<false>(at), at, s, t);
        mine.teacher.find_column(t, pair.layout.template column_at<S>(at));
    }
}

// Returns the sums over the groups of `for_groups(f)` and the edge columns, over all threads of the cluster.
template <typename S, Case C, bool Stats, typename ForGroups>
__device__ __forceinline__ ExpSums<Stats> exp_sum_pass(const LaunchArgs& args, const RowPair<S>& pair,
                                                       const EdgeColumn& edge, bool stats, Reducer& reducer,
                                                       const ForGroups& for_groups) {
    ExpSums<Stats> mine = ExpSums<Stats>::identity();
    for_groups([&](unsigned at, const PairBytes& bytes, const auto& fetch_next) {
        float s[Group<S>::columns], t[Group<S>::columns];
        pair.unpack(bytes, at, s, t);
        GroupTops tops{-infinite, -infinite};
        if (Stats && stats) {
            tops.student = Group<S>::largest(bytes.student);
            tops.teacher = pair.teacher_aligned ? Group<S>::largest(bytes.teacher) : largest_of(t);
        }
        fetch_next();
        add_to_sums<S, C>(s, t, args.config, mine, tops);
        if (Stats && stats) {
            mine.student.rank_group(tops.student, at);
            mine.teacher.rank_group(tops.teacher, at);
        }
    });
    if (Stats && stats) find_argmax_columns(pair, mine);
    if (edge.exists()) {
        const float s[1] = {edge.s}, t[1] = {edge.t};
        GroupTops tops{};
        add_to_sums<S, C>(s, t, args.config, mine, tops);
        if (Stats && stats) {
            mine.student.rank_edge(edge.s, edge.column_of(pair));
            mine.teacher.rank_edge(edge.t, edge.column_of(pair));
        }
    }
    return reducer.reduce_cluster(mine);
}

// Calls f(s, t) for this thread's share of the columns [begin, end) of a row, in the form that `Exponent::factor`
// multiplies. It reads column by column and computes the pointers again, so that it needs few registers.
template <typename S, typename F>
__device__ __forceinline__ void for_each_column(const LaunchArgs& args, std::int64_t row, int begin, int end, const F& f) {
    const RowPair<S> pair = pair_of<S, Case::general>(args, row, begin, end);
    const int step = static_cast<int>(blockDim.x * cluster_blocks());
#pragma unroll 1
    for (int i = static_cast<int>(cluster_rank() * blockDim.x + threadIdx.x); i < end - begin; i += step) {
        f(exponent_input<false>(widen(pair.student[i]), args.config.student),
          exponent_input<false>(pair.teacher.at(i), args.config.teacher));
    }
}

// Returns the log-sums of the columns [begin, end) over the cluster, relative to the largest logit, in two slow passes. It
// is no inline function, so that it takes no registers from the kernel. It has two reductions, after which `reducer` writes
// to the same copy of its slots as before.
template <typename S>
__device__ __noinline__ LogSums exact_log_sums(const LaunchArgs& args, std::int64_t row, int begin, int end,
                                               Reducer reducer) {
    NumberPair<true> top = NumberPair<true>::identity();
    for_each_column<S>(args, row, begin, end, [&](float s, float t) {
        top.first = fmaxf(top.first, s);
        top.second = fmaxf(top.second, t);
    });
    top = reducer.reduce_cluster(top);
    NumberPair<false> sum = NumberPair<false>::identity();
    for_each_column<S>(args, row, begin, end, [&](float s, float t) {
        sum.first += exp2_approx((s - top.first) * args.config.student.factor);
        sum.second += exp2_approx((t - top.second) * args.config.teacher.factor);
    });
    sum = reducer.reduce_cluster(sum);
    return {LogSum::of(top.first, sum.first), LogSum::of(top.second, sum.second)};
}

// Returns whether `columns` columns need `exact_log_sums`, because the first pass could not add their powers. One column
// needs them too, so that its probability is exactly 1; kernels of the common case never get one column.
template <bool Stats>
__device__ __forceinline__ bool needs_exact(const ExpSums<Stats>& found, int columns) {
    return found.student.out_of_bounds() || found.teacher.out_of_bounds() || columns == 1;
}
template <bool Stats>
__device__ __forceinline__ LogSums log_sums_of(const ExpSums<Stats>& found, const DivergenceConfig& config) {
    return {LogSum::of(found.student, config.student), LogSum::of(found.teacher, config.teacher)};
}

template <Case C>
__device__ __forceinline__ ColumnValues values_of(float s, float t, const DivergenceConfig& config, const LogSums& x) {
    ColumnValues c;
    c.s = exponent_input<is_common(C)>(s, config.student);
    c.t = exponent_input<is_common(C)>(t, config.teacher);
    c.log2_q = x.student.log2_probability(c.s, config.student.factor);
    c.log2_p = x.teacher.log2_probability(c.t, config.teacher.factor);
    c.q = exp2_approx(c.log2_q);
    c.p = exp2_approx(c.log2_p);
    c.d = c.log2_q - c.log2_p;
    c.r = c.d * ln2f;
    return c;
}

// Replaces -inf by logits whose probability is 0 and whose logarithm is finite, so that the loop over the columns needs no
// comparisons with 0. Returns the terms that this removes: +inf if the forward KL has a column that only the student
// excludes, or the reverse KL one that only the teacher excludes.
template <Case C, int G>
__device__ __forceinline__ float replace_minus_infinity(float (&s)[G], float (&t)[G], const DivergenceConfig& config,
                                                        const LogSums& log_sums) {
    constexpr float far_below = 16384.0f;  // 2^-16384 is 0
    const float least_s = fmaf(-far_below, config.student.inverse, log_sums.student.origin);
    const float least_t = fmaf(-far_below, config.teacher.inverse, log_sums.teacher.origin);
    float removed = 0.0f;
#pragma unroll
    for (int i = 0; i < G; ++i) {
        const bool no_s = s[i] == -infinite, no_t = t[i] == -infinite;
        if (no_s) s[i] = least_s;
        if (no_t) t[i] = least_t;
        if (C == Case::forward && no_s) {
            if (exp2_approx(log_sums.teacher.log2_probability(t[i], config.teacher.factor)) > 0.0f) removed = infinite;
        } else if (C == Case::reverse && no_t) {
            if (exp2_approx(log_sums.student.log2_probability(s[i], config.student.factor)) > 0.0f) removed = infinite;
        }
    }
    return removed;
}

// Returns the divergence and its statistics, summed over the groups of `for_groups(f)`, the edge columns and the cluster.
// For the forward KL, also writes the gradient if it is to be `written`.
template <typename S, Case C, bool Stats, typename ForGroups>
__device__ __forceinline__ DivergenceSums divergence_pass(const LaunchArgs& args, const RowPair<S>& pair,
                                                          const EdgeColumn& edge, bool stats, const LogSums& log_sums,
                                                          float weight, const GradientRow<S>& gradient, Reducer& reducer,
                                                          const ForGroups& for_groups) {
    constexpr bool finite = is_common(C) && is_short<S>;
    const float factor = weight * args.config.grad_scale;
    DivergenceSums mine = DivergenceSums::identity();
    const auto add = [&](float s, float t) {
        const ColumnValues c = values_of<C>(s, t, args.config, log_sums);
        const ColumnTerms terms = divergence_terms<C, is_short<S>, finite>(c, args.config);
        mine.value += terms.value;
        if (C == Case::jsd || C == Case::general) mine.mean_dlogp += terms.mean_dlogp;
        if (Stats && stats) {
            mine.s_mean_log2 = fmaf(c.q, finite ? c.log2_q : fmaxf(c.log2_q, -1.0e30f), mine.s_mean_log2);
            mine.t_mean_log2 = fmaf(c.p, finite ? c.log2_p : fmaxf(c.log2_p, -1.0e30f), mine.t_mean_log2);
        }
        return apply_cap_slope<is_common(C)>((c.q - c.p) * factor, c.s, args.config.student);
    };
    for_groups([&](unsigned at, const PairBytes& bytes, const auto& fetch_next) {
        float s[Group<S>::columns], t[Group<S>::columns];
        pair.unpack(bytes, at, s, t);
        if constexpr (finite) {
            if (Group<S>::has_minus_infinity(bytes.student, bytes.teacher)) {
                mine.value += replace_minus_infinity<C>(s, t, args.config, log_sums);
            }
        }
        fetch_next();
#pragma unroll
        for (int i = 0; i < Group<S>::columns; ++i) s[i] = add(s[i], t[i]);
        if (gradient.written) gradient.store(at, s);
    });
    // Kernels with few registers read the edge column after the loop. No other thread writes a gradient there.
    const EdgeColumn last = is_common(C) ? EdgeColumn::of(pair, edge.edges > 0) : edge;
    if (last.exists()) {
        float s[1] = {last.s}, t[1] = {last.t};
        if (finite) mine.value += replace_minus_infinity<C>(s, t, args.config, log_sums);
        const float g = add(s[0], t[0]);
        if (gradient.written) gradient.store_column(last.column_of(pair), g);
    }
    if (C == Case::reverse) mine.mean_dlogp = mine.value;
    const ColumnTerms units = term_units<C, is_short<S>>(args.config);
    mine.value *= units.value;
    mine.mean_dlogp *= units.mean_dlogp;
    return reducer.reduce_cluster(mine);
}

// Writes the gradient. For reverse KL and JSD it needs E_q[G] from the pass before.
template <typename S, Case C, typename ForGroups>
__device__ __forceinline__ void gradient_pass(const LaunchArgs& args, const RowPair<S>& pair, const EdgeColumn& edge,
                                              const LogSums& log_sums, float weight, float mean_dlogp,
                                              const GradientRow<S>& gradient, const ForGroups& for_groups) {
    const float factor = weight * args.config.grad_scale;
    const auto gradient_at = [&](float s, float t) {
        const ColumnValues c = values_of<C>(s, t, args.config, log_sums);
        const float g = divergence_gradient<C, is_short<S>>(c, mean_dlogp, args.config);
        return apply_cap_slope<is_common(C)>(g * factor, c.s, args.config.student);
    };
    for_groups([&](unsigned at, const PairBytes& bytes, const auto& fetch_next) {
        float s[Group<S>::columns], t[Group<S>::columns];
        pair.unpack(bytes, at, s, t);
        fetch_next();
#pragma unroll
        for (int i = 0; i < Group<S>::columns; ++i) s[i] = gradient_at(s[i], t[i]);
        gradient.store(at, s);
    });
    if (edge.exists()) gradient.store_column(edge.column_of(pair), gradient_at(edge.s, edge.t));
}

// Returns the log-sums of a row from `SpanKlParams::state_given`, or from `lse_given` if `with_mean` is false.
__device__ __forceinline__ LogSums stored_log_sums(const float* state, std::int64_t rows, std::int64_t row, bool with_mean) {
    const float* const origins = state + (with_mean ? 3 : 2) * rows + row;
    return {LogSum::stored(state[row], origins[0]), LogSum::stored(state[rows + row], origins[rows])};
}

// These functions write the outputs of a row whose pointers are not null.
__device__ __forceinline__ void write_log_sums(const SpanKlParams& params, std::int64_t row, const LogSums& x) {
    if (!params.state) return;
    float fields[4] = {x.student.in_nats(), x.teacher.in_nats(), x.student.origin, x.teacher.origin};
    for (int k = 0; k < 4; ++k) {
        if (params.lse_given) fields[k] = params.lse_given[k * params.rows + row];
        params.state[(k < 2 || !params.value ? k : k + 1) * params.rows + row] = fields[k];
    }
}
__device__ __forceinline__ void write_argmax(const SpanKlParams& params, std::int64_t row, int student, int teacher) {
    params.argmax[row] = student;
    params.argmax[params.rows + row] = teacher;
}
__device__ __forceinline__ void write_sums(const SpanKlParams& params, Divergence divergence, std::int64_t row,
                                           const DivergenceSums& sums) {
    params.value[row] = sums.value;
    if (params.state) params.state[2 * params.rows + row] = divergence == Divergence::forward ? 0.0f : sums.mean_dlogp;
    if (params.entropies) {
        params.entropies[row] = entropy(sums.t_mean_log2);
        params.entropies[params.rows + row] = entropy(sums.s_mean_log2);
    }
}

// Computes the row at a position of the index, in a block or a cluster. `groups` loops over the row once per pass.
template <typename S, Case C, bool Stats, typename Groups>
__device__ __forceinline__ void process_row(const LaunchArgs& args, int position, int row, const RowPair<S>& pair,
                                            Groups& groups, Reducer& reducer) {
    const SpanKlParams& params = args.params;
    const bool writes = threadIdx.x == 0 && cluster_rank() == 0, stats = Stats && (is_common(C) || params.argmax);
    EdgeColumn edge = EdgeColumn::of(pair, cluster_rank() == 0);
    LogSums log_sums;
    bool deferred = false;
    if (!params.lse_given || (Stats && params.argmax)) {
        const ExpSums<Stats> found =
            exp_sum_pass<S, C, Stats>(args, pair, edge, stats, reducer, [&](const auto& f) { groups.first(f); });
        if (writes && params.argmax) write_argmax(params, row, found.student.argmax(), found.teacher.argmax());
        log_sums = log_sums_of(found, args.config);
        const int vocab = static_cast<int>(params.vocab);
        if (!params.lse_given && needs_exact(found, vocab)) {
            if constexpr (is_common(C)) {
                deferred = true;
                if (writes) args.index.defer(position, row);
            } else {
                log_sums = exact_log_sums<S>(args, row, 0, vocab, reducer);
            }
        }
    }
    if (params.lse_given) log_sums = stored_log_sums(params.lse_given, params.rows, row, false);
    if (writes) write_log_sums(params, row, log_sums);
    if (!params.value) return;
    edge = EdgeColumn::of(pair, cluster_rank() == 0);  // read again, so that it takes no registers before
    S* const grad = deferred ? nullptr : gradient_of<S>(args, row);
    const float weight = grad ? params.weights[row] : 0.0f;
    // The gradient of weight 0 is 0 even where the arithmetic gives NaN, so no pass computes it.
    const GradientRow<S> gradient{grad, weight != 0.0f, is_common(C) || args.grad_aligned, pair.layout};
    const bool third_pass = gradient.written && divergence_of<C>(args.config) != Divergence::forward;
    const GradientRow<S> gradient_now{grad, gradient.written && !third_pass, gradient.aligned, gradient.layout};
    const DivergenceSums sums =
        divergence_pass<S, C, Stats>(args, pair, edge, stats, log_sums, weight, gradient_now, reducer, [&](const auto& f) {
            if (third_pass) {
                groups.second_of_three(f);
            } else {
                groups.second_of_two(f);
            }
        });
    if (writes) write_sums(params, args.config.divergence, row, sums);
    if (third_pass) {
        edge = EdgeColumn::of(pair, cluster_rank() == 0);
        gradient_pass<S, C>(args, pair, edge, log_sums, weight, sums.mean_dlogp, gradient,
                            [&](const auto& f) { groups.third(f); });
    }
    if (grad && cluster_rank() == 0) {
        const int written = gradient.written ? static_cast<int>(params.vocab) : 0;
        fill_zeros(grad + written, static_cast<int>(params.student_columns) - written);
    }
}

// Writes zeros to the gradient of rows that are not read, one block per row.
template <typename S>
__device__ __forceinline__ void zero_unread_rows(const LaunchArgs& args, int read) {
    if (!args.params.grad.data) return;
    const int rows = static_cast<int>(args.params.rows), blocks = static_cast<int>(gridDim.x);
    for (int position = read + static_cast<int>(blockIdx.x); position < rows; position += blocks) {
        fill_zeros(gradient_of<S>(args, args.index.entries[position]), static_cast<int>(args.params.student_columns));
    }
}

}  // namespace sad::cuda
