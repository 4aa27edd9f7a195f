// Which kernels run one after the other, and where their scratch memory lies.
#include "operands.h"
#include "plan.h"
#include "slice_kernels.cuh"
#include "span_kl.h"
#include "supervised_rows.cuh"

namespace sad::cuda {
namespace {

static_assert(sizeof(Board) == board_bytes);

// What of `a` decides the kernels, and the plan that follows.
struct Decision {
    bool stats, teacher_wide, grad_wide, lean, gradient_only;
    Plan plan;               // of the rows, where they are compared
    Plan gradient;           // of the gradient that comes after
    bool gradient_later;     // a kernel of its own
    std::int64_t shares;     // numbers that every slice leaves behind, in 4-byte words
    std::int64_t own_state;  // log-sum-exps and E_q[G] for the gradient that comes after, in 4-byte words

    Decision(const SpanKlParams& a, int device) {
        stats = a.argmax != nullptr;
        const bool capless = a.student.cap == 0.0f && a.teacher.cap == 0.0f;
        teacher_wide = same_phase(a.student.rows, a.teacher.rows);
        grad_wide = a.grad.data && same_phase(a.student.rows, a.grad);
        lean = capless && a.divergence == Divergence::forward && teacher_wide && (grad_wide || !a.grad.data);
        gradient_only = a.state_given != nullptr;
        const int element = size_of(a.student.rows.dtype);
        const RowWork work{
            a.rows,       a.vocab,       16 / element, element + size_of(a.teacher.rows.dtype), a.value && !a.lse_given,
            teacher_wide, lean && !stats};
        const Card& on = card(device);
        plan = plan_rows(on, work);
        RowWork once = work;
        once.narrow_kernel = lean;
        gradient = plan_one_pass(on, once);
        gradient_later = gradient_only || (plan.way == Way::sliced && a.grad.data && a.divergence != Divergence::forward);
        const bool sliced = !gradient_only && plan.way == Way::sliced;
        shares = sliced ? (stats ? 12 : 8) * a.rows * plan.slices : 0;
        own_state = sliced && gradient_later && !a.state ? 3 * a.rows : 0;
    }
    std::int64_t index_words(const SpanKlParams& a) const { return (a.rows + 1 + 3) / 4 * 4; }
    std::int64_t words(const SpanKlParams& a) const { return index_words(a) + shares + own_state; }
};

void compare_rows(const Decision& d, const Kernels& kernels, const Work& work, Stream stream) {
    const Variant variant = !d.lean ? general : d.stats ? lean_stats : lean;
    if (d.plan.way == Way::resident) return launch(kernels.resident[variant], d.plan.rows, stream, work);
    if (d.plan.way == Way::streamed) return launch(kernels.streamed[variant], d.plan.rows, stream, work);
    if (!work.a.lse_given || d.stats) launch(kernels.slice_totals[d.stats], d.plan.rows, stream, work);
    if (work.a.value) launch(kernels.slice_values[d.stats], d.plan.rows, stream, work);
    const auto combine = d.stats ? &combine_slices_kernel<true> : &combine_slices_kernel<false>;
    launch(combine, Launch{static_cast<unsigned>(work.a.rows), warp_width, 0, 1}, stream, work);
}

}  // namespace

std::int64_t span_kl_scratch_bytes(const SpanKlParams& a, int device) {
    return a.rows ? 4 * Decision(a, device).words(a) : 0;
}

void span_kl(const SpanKlParams& a, void* scratch, int device, Stream stream) {
    if (a.rows == 0) return;
    const DeviceGuard guard(device);
    const Decision d(a, device);
    const Kernels kernels = kernels_of(a.student.rows.dtype);
    auto* index = static_cast<std::int32_t*>(scratch);
    auto* shares = static_cast<float*>(scratch) + d.index_words(a);
    Work work{};
    work.a = a;
    work.how = {exponent_of(a.student, a.temperature), exponent_of(a.teacher, a.temperature), a.divergence, a.beta,
                a.student.scale / a.temperature};
    work.index = index;
    work.teacher_wide = d.teacher_wide;
    work.grad_wide = d.grad_wide;
    work.slots = static_cast<int>(d.plan.slots);
    work.slices = static_cast<int>(d.plan.slices);
    work.slice_columns = static_cast<int>(d.plan.slice_columns);
    const std::int64_t field = a.rows * d.plan.slices;
    work.totals = shares;
    work.sums = shares + 4 * field;
    work.best = shares + 8 * field;
    work.best_column = reinterpret_cast<std::int32_t*>(shares + 10 * field);
    if (d.own_state) work.a.state = shares + d.shares;

    const auto threads = static_cast<unsigned>(std::min(card(device).block_threads, 512));
    launch(&collect_rows_kernel, Launch{1, threads, board_bytes, 1}, stream, work.a, index, d.gradient_only, a.value ? 3 : 2,
           2);
    if (!d.gradient_only) compare_rows(d, kernels, work, stream);
    if (!d.gradient_later) return;
    if (!d.gradient_only) work.a.state_given = work.a.state;
    work.slices = static_cast<int>(d.gradient.slices);
    work.slice_columns = static_cast<int>(d.gradient.slice_columns);
    launch(kernels.gradient[d.lean], d.gradient.rows, stream, work);
}

void scale_rows(std::int64_t rows, std::int64_t columns, const Rows<void>& grad, const std::uint8_t* kinds,
                const float* factor, int device, Stream stream) {
    if (rows == 0) return;
    const DeviceGuard guard(device);
    const int element = size_of(grad.dtype);
    const Plan plan = plan_one_pass(card(device), {rows, columns, 16 / element, 2 * element, false, true, true});
    launch(kernels_of(grad.dtype).scale, plan.rows, stream, grad, kinds, factor, static_cast<int>(rows),
           static_cast<int>(columns), static_cast<int>(plan.slices), static_cast<int>(plan.slice_columns));
}

}  // namespace sad::cuda
