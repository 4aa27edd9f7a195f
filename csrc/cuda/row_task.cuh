// A row's way from logits to outputs, wherever its groups are read from: memory (`StreamedGroups`), shared memory
// (`resident_rows.cuh`), or a slice of them.
#pragma once

#include "rows.cuh"
#include "softmax.cuh"

namespace sad::cuda {

// What every kernel is launched with.
struct Work {
    SpanKlParams a;
    Arithmetic how;
    const std::int32_t* index;     // (rows + 1) rows that are read, the others from the back, the number of the former
    bool teacher_wide, grad_wide;  // their groups begin where the student's do
    int slices, slice_columns;     // of every row; 1 and vocab where rows stay whole
    int slots;                     // of one block in shared memory for each side, in resident rows
    float* totals;                 // (4, rows, slices) shift and total of student, of teacher, by position in the index
    float* best;                   // (2, rows, slices)
    std::int32_t* best_column;     // (2, rows, slices)
    float* sums;                   // (4, rows, slices), the fields of Sums
};

// `Lean` kernels know that there is no soft cap, that the divergence is forward, and that all groups begin alike; `Stats`
// ones that statistics may be wanted.
template <typename S, bool Lean>
__device__ __forceinline__ PairInMemory<S> pair_of(const Work& w, std::int64_t row, int begin, int end) {
    const auto* student = static_cast<const S*>(row_of(w.a.student.rows, row, begin));
    const TeacherRow teacher{row_of(w.a.teacher.rows, row, begin), w.a.teacher.rows.dtype};
    return {student, teacher, Lean || w.teacher_wide, Cut::of(student, end - begin)};
}

template <typename S>
__device__ __forceinline__ S* gradient_of(const Work& w, std::int64_t row) {
    return w.a.grad.data ? static_cast<S*>(w.a.grad.data) + w.a.grad.offset(row) : nullptr;
}

template <bool Lean, bool Stats, int G>
__device__ __forceinline__ void add_totals(const float (&s)[G], const float (&t)[G], const Arithmetic& how,
                                           Totals<Stats>& totals) {
    float x[G];
#pragma unroll
    for (int i = 0; i < G; ++i) x[i] = as_compared<Lean>(s[i], how.student);
    totals.student.add(x, how.student.factor);
#pragma unroll
    for (int i = 0; i < G; ++i) x[i] = as_compared<Lean>(t[i], how.teacher);
    totals.teacher.add(x, how.teacher.factor);
}

// Totals of the groups that `walk_groups(f)` gives, of this thread's edge, and of everyone else's in the cluster.
template <typename S, bool Lean, bool Stats, typename Walk>
__device__ __forceinline__ Totals<Stats> totals_pass(const Work& w, const PairInMemory<S>& pair, const Edge& edge,
                                                     bool stats, Exchange& exchange, const Walk& walk_groups) {
    Totals<Stats> mine = Totals<Stats>::nothing();
    walk_groups([&](int group, const Words& words) {
        float s[Group<S>::columns], t[Group<S>::columns];
        pair.unpack(words, group, s, t);
        if (Stats && stats) {
            mine.student.rank(s, pair.cut.template column_of_group<S>(group));
            mine.teacher.rank(t, pair.cut.template column_of_group<S>(group));
        }
        add_totals<Lean>(s, t, w.how, mine);
    });
    if (edge.exists) {
        const float s[1] = {edge.s}, t[1] = {edge.t};
        add_totals<Lean>(s, t, w.how, mine);
        if (Stats && stats) {
            mine.student.rank_edge(edge.s, edge.column);
            mine.teacher.rank_edge(edge.t, edge.column);
        }
    }
    return exchange.over_cluster(mine);
}

// p, q and r of one column.
struct Column {
    float s, t;      // what was compared: logits or their tanh
    float s_a, t_a;  // exponents
    float q, p, r;

    template <bool Lean>
    static __device__ __forceinline__ Column of(float s, float t, const Arithmetic& how, const Softmaxes& x) {
        Column c;
        c.s = as_compared<Lean>(s, how.student);
        c.t = as_compared<Lean>(t, how.teacher);
        c.s_a = fmaf(c.s, how.student.factor, -x.s_shift);
        c.t_a = fmaf(c.t, how.teacher.factor, -x.t_shift);
        c.q = power_of_2(c.s_a) * x.s_inverse;
        c.p = power_of_2(c.t_a) * x.t_inverse;
        c.r = fmaf(c.s_a - c.t_a, ln2f, x.log_ratio);  // NaN where both are 0
        return c;
    }
};

// Sums of the divergence and its statistics over the groups of `walk_groups(f)`, the edge and the cluster; and the gradient
// of `forward`, which needs no more, if the row `gradient` is somewhere.
template <typename S, bool Lean, bool Stats, typename Walk>
__device__ __forceinline__ Sums divergence_pass(const Work& w, const PairInMemory<S>& pair, const Edge& edge, bool stats,
                                                const Softmaxes& softmaxes, float weight, const GradientRow<S>& gradient,
                                                Exchange& exchange, const Walk& walk_groups) {
    const float factor = weight * w.how.grad_scale;
    const float s_log2 = Stats ? log_of_2(softmaxes.s_inverse) : 0.0f, t_log2 = Stats ? log_of_2(softmaxes.t_inverse) : 0.0f;
    Sums mine = Sums::nothing();
    const auto add = [&](float s, float t) {
        const Column c = Column::of<Lean>(s, t, w.how, softmaxes);
        const Terms terms = divergence_terms<Lean>(c.p, c.q, c.r, w.how);
        mine.value += terms.value;
        if (!Lean) mine.pull += terms.pull;
        if (Stats && stats) {
            mine.s_mean_log2 = fmaf(c.q, fmaxf(c.s_a + s_log2, -1.0e30f), mine.s_mean_log2);
            mine.t_mean_log2 = fmaf(c.p, fmaxf(c.t_a + t_log2, -1.0e30f), mine.t_mean_log2);
        }
        return weight == 0.0f ? 0.0f : through_cap<Lean>((c.q - c.p) * factor, c.s, w.how.student);
    };
    walk_groups([&](int group, const Words& words) {
        float s[Group<S>::columns], t[Group<S>::columns];
        pair.unpack(words, group, s, t);
#pragma unroll
        for (int i = 0; i < Group<S>::columns; ++i) s[i] = add(s[i], t[i]);
        if (gradient.first) gradient.store(group, s);
    });
    if (edge.exists) {
        const float g = add(edge.s, edge.t);
        if (gradient.first) gradient.store(edge, g);
    }
    return exchange.over_cluster(mine);
}

// The gradient once E_q[G] is known.
template <typename S, bool Lean, typename Walk>
__device__ __forceinline__ void gradient_pass(const Work& w, const PairInMemory<S>& pair, const Edge& edge,
                                              const Softmaxes& softmaxes, float weight, float mean_pull,
                                              const GradientRow<S>& gradient, const Walk& walk_groups) {
    const float factor = weight * w.how.grad_scale;
    const auto by_logit = [&](float s, float t) {
        const Column c = Column::of<Lean>(s, t, w.how, softmaxes);
        const float g = divergence_gradient<Lean>(c.p, c.q, c.r, mean_pull, w.how);
        return weight == 0.0f ? 0.0f : through_cap<Lean>(g * factor, c.s, w.how.student);
    };
    walk_groups([&](int group, const Words& words) {
        float s[Group<S>::columns], t[Group<S>::columns];
        pair.unpack(words, group, s, t);
#pragma unroll
        for (int i = 0; i < Group<S>::columns; ++i) s[i] = by_logit(s[i], t[i]);
        gradient.store(group, s);
    });
    if (edge.exists) gradient.store(edge, by_logit(edge.s, edge.t));
}

// Outputs of a row, each where there is a place for it.
__device__ __forceinline__ void write_log_sum_exps(const SpanKlParams& a, std::int64_t row, float student, float teacher) {
    if (!a.state) return;
    a.state[row] = student;
    a.state[a.rows + row] = teacher;
}
__device__ __forceinline__ void write_argmax(const SpanKlParams& a, std::int64_t row, int student, int teacher) {
    a.argmax[row] = student;
    a.argmax[a.rows + row] = teacher;
}
__device__ __forceinline__ void write_sums(const SpanKlParams& a, Divergence divergence, std::int64_t row,
                                           const Sums& sums) {
    a.value[row] = sums.value;
    if (a.state) a.state[2 * a.rows + row] = divergence == Divergence::forward ? 0.0f : sums.pull;
    if (a.entropies) {
        a.entropies[row] = entropy(sums.t_mean_log2);
        a.entropies[a.rows + row] = entropy(sums.s_mean_log2);
    }
}

// A whole row, by a block or a cluster. `groups` has walks for the pass that reads first, one that others follow, and the
// last.
template <typename S, bool Lean, bool Stats, typename Groups>
__device__ __forceinline__ void work_on_row(const Work& w, std::int64_t row, const PairInMemory<S>& pair, Groups& groups,
                                            Exchange& exchange) {
    const SpanKlParams& a = w.a;
    const bool leads = threadIdx.x == 0 && cluster_rank() == 0, stats = Stats && a.argmax != nullptr;
    Edge edge{false, 0, 0.0f, 0.0f};
    if (cluster_rank() == 0) edge = Edge::of(pair);
    Softmaxes softmaxes;
    if (!a.lse_given || stats) {
        const Totals<Stats> whole =
            totals_pass<S, Lean, Stats>(w, pair, edge, stats, exchange, [&](const auto& f) { groups.first(f); });
        softmaxes = Softmaxes::of(whole.student, whole.teacher);
        if (leads && stats) write_argmax(a, row, whole.student.argmax(), whole.teacher.argmax());
        if (leads && !a.lse_given) write_log_sum_exps(a, row, whole.student.log_sum_exp(), whole.teacher.log_sum_exp());
    }
    if (a.lse_given) {
        const float s_lse = a.lse_given[row], t_lse = a.lse_given[a.rows + row];
        softmaxes = Softmaxes::of(s_lse, t_lse);
        if (leads) write_log_sum_exps(a, row, s_lse, t_lse);
    }
    if (!a.value) return;
    const GradientRow<S> gradient{gradient_of<S>(w, row), Lean || w.grad_wide, pair.cut};
    const float weight = gradient.first ? a.weights[row] : 0.0f;
    const bool gradient_later = !Lean && gradient.first && w.how.divergence != Divergence::forward;
    const GradientRow<S> gradient_now{gradient_later ? nullptr : gradient.first, gradient.wide, gradient.cut};
    const Sums sums =
        divergence_pass<S, Lean, Stats>(w, pair, edge, stats, softmaxes, weight, gradient_now, exchange, [&](const auto& f) {
            if (gradient_later) {
                groups.middle(f);
            } else {
                groups.last(f);
            }
        });
    if (leads) write_sums(a, w.how.divergence, row, sums);
    if (!Lean && gradient_later) {
        gradient_pass<S, Lean>(w, pair, edge, softmaxes, weight, sums.pull, gradient,
                               [&](const auto& f) { groups.final(f); });
    }
    if (gradient.first && cluster_rank() == 0) {
        fill_zeros(gradient.first + a.vocab, static_cast<int>(a.student_columns - a.vocab));
    }
}

// Zeros for the rows that are not read, a block each.
template <typename S>
__device__ __forceinline__ void clear_unread_rows(const Work& w, int read) {
    if (!w.a.grad.data) return;
    const int rows = static_cast<int>(w.a.rows), blocks = static_cast<int>(gridDim.x);
    for (int position = read + static_cast<int>(blockIdx.x); position < rows; position += blocks) {
        fill_zeros(gradient_of<S>(w, w.index[position]), static_cast<int>(w.a.student_columns));
    }
}

}  // namespace sad::cuda
