// The launches of the span divergences: which kernels run, in which order, and the layout of their scratch memory.
#include "dispatch.h"
#include "kernels.h"
#include "launch_plan.h"
#include "slice_kernels.cuh"
#include "supervised_rows.cuh"

namespace sad::cuda {
namespace {

static_assert(sizeof(ReductionBuffer) == reduction_buffer_bytes);

template <typename Kernel>
BlocksAtOnce on_device(int device, Kernel* kernel) {
    return [=](const LaunchShape& shape) { return blocks_at_once(kernel, device, shape); };
}

Variant variant_of(const SpanKlParams& params, bool common) {
    if (!common) return general;
    if (params.divergence == Divergence::forward) return params.argmax ? forward_stats : forward;
    return params.divergence == Divergence::reverse ? reverse : jsd;
}

// The kernels and the scratch memory of one call. `device` is current. Sizes are in 4-byte words.
struct SpanKlPlan {
    bool stats, teacher_aligned, grad_aligned;
    Variant variant;
    bool gradient_only;      // the call has `state_given`
    bool separate_gradient;  // the gradient has a kernel of its own
    LaunchPlan divergence;   // the kernels that compute the divergence
    LaunchPlan gradient;     // the separate gradient kernel
    LaunchPlan deferred;     // the general kernel for the rows that one of the common case defers
    bool may_defer;
    std::int64_t index_words;  // the index of rows
    std::int64_t slice_words;  // the partial results of the slices
    std::int64_t state_words;  // the state for a separate gradient, if the call has no `state`

    SpanKlPlan(const SpanKlParams& params, int device, PlanChoice choice) {
        stats = params.argmax != nullptr;
        const bool uncapped = params.student.cap == 0.0f && params.teacher.cap == 0.0f;
        teacher_aligned = same_alignment(params.student.rows, params.teacher.rows, params.rows);
        grad_aligned = params.grad.data && same_alignment(params.student.rows, params.grad, params.rows);
        const int element = size_of(params.student.rows.dtype);
        const bool has_kernel = params.divergence != Divergence::jsd || element == 4 || jsd_is_short(params.beta);
        const bool common =
            uncapped && teacher_aligned && (grad_aligned || !params.grad.data) && params.vocab > 1 && has_kernel;
        variant = variant_of(params, common);
        gradient_only = params.state_given != nullptr;
        RowShape shape{params.rows,
                       params.vocab,
                       16 / element,
                       element + size_of(params.teacher.rows.dtype),
                       params.value && !params.lse_given,
                       teacher_aligned,
                       common && params.divergence == Divergence::forward};
        const KernelTable kernels = kernels_for(params.student.rows.dtype);
        const RowKernels of_rows{on_device(device, kernels.resident[variant]), on_device(device, kernels.streamed[variant]),
                                 [&](const LaunchShape& launch) {
                                     return std::min(blocks_at_once(kernels.slice_totals[stats], device, launch),
                                                     blocks_at_once(kernels.slice_values[stats], device, launch));
                                 }};
        if (!common) choice.strategy.reset();  // the general kernel was not measured
        divergence = plan_rows(gpu(device), shape, of_rows, choice);
        const bool sliced = divergence.strategy == Strategy::sliced;
        may_defer = common && !sliced && !params.lse_given;
        shape.two_blocks_fit = false;
        deferred = streamed_plan(gpu(device), shape, on_device(device, kernels.streamed[general]));
        shape.two_blocks_fit = common;
        gradient = plan_one_pass(gpu(device), shape, on_device(device, kernels.gradient[variant]));
        separate_gradient = gradient_only || (sliced && params.grad.data && params.divergence != Divergence::forward);
        index_words = (params.rows + 2 + 3) / 4 * 4;
        slice_words = sliced && !gradient_only ? (stats ? 12 : 8) * params.rows * divergence.slices : 0;
        state_words = sliced && !gradient_only && separate_gradient && !params.state ? 5 * params.rows : 0;
    }
};

void launch_whole_rows(const SpanKlPlan& plan, const KernelTable& kernels, LaunchArgs args, Stream stream) {
    const bool resident = plan.divergence.strategy == Strategy::resident;
    launch(resident ? kernels.resident[plan.variant] : kernels.streamed[plan.variant], plan.divergence.launch, stream, args);
    if (!plan.may_defer) return;
    args.index.deferred_only = true;
    launch(kernels.streamed[general], plan.deferred.launch, stream, args);
}

void launch_slices(const SpanKlPlan& plan, const KernelTable& kernels, const LaunchArgs& args, Stream stream) {
    const LaunchShape& shape = plan.divergence.launch;
    if (!args.params.lse_given || plan.stats) launch(kernels.slice_totals[plan.stats], shape, stream, args);
    if (args.params.value) launch(kernels.slice_values[plan.stats], shape, stream, args);
    const auto combine = plan.stats ? &combine_slices_kernel<true> : &combine_slices_kernel<false>;
    launch(combine, LaunchShape{static_cast<unsigned>(args.params.rows), warp_width, 0, 1}, stream, args);
}

}  // namespace

std::int64_t span_kl_scratch_bytes(const SpanKlParams& params, int device, const PlanChoice& choice) {
    if (params.rows == 0) return 0;
    const DeviceGuard guard(device);
    const SpanKlPlan plan(params, device, choice);
    return 4 * (plan.index_words + plan.slice_words + plan.state_words);
}

void span_kl(const SpanKlParams& params, void* scratch, int device, Stream stream, const PlanChoice& choice) {
    if (params.rows == 0) return;
    const DeviceGuard guard(device);
    const SpanKlPlan plan(params, device, choice);
    const KernelTable kernels = kernels_for(params.student.rows.dtype);
    auto* const entries = static_cast<std::int32_t*>(scratch);
    auto* slices = static_cast<float*>(scratch) + plan.index_words;
    LaunchArgs args{};
    args.params = params;
    args.config = {exponent_of(params.student, params.temperature), exponent_of(params.teacher, params.temperature),
                   params.divergence, mixture_of(params.divergence == Divergence::jsd ? params.beta : 0.5),
                   params.student.scale / params.temperature};
    args.index = {entries, entries + params.rows, false};
    args.teacher_aligned = plan.teacher_aligned;
    args.grad_aligned = plan.grad_aligned;
    args.slots = static_cast<int>(plan.divergence.slots);
    args.slices = static_cast<int>(plan.divergence.slices);
    args.slice_columns = static_cast<int>(plan.divergence.slice_columns);
    const std::int64_t field = params.rows * plan.divergence.slices;
    args.log_sums = slices;
    args.divergence_sums = slices + 4 * field;
    args.max_logits = slices + 8 * field;
    args.argmax_columns = reinterpret_cast<std::int32_t*>(slices + 10 * field);
    if (plan.state_words) args.params.state = slices + plan.slice_words;

    const auto threads = static_cast<unsigned>(std::min(gpu(device).max_block_threads, 512));
    launch(&collect_rows_kernel, LaunchShape{1, threads, reduction_buffer_bytes, 1}, stream, args.params, args.index,
           plan.gradient_only, params.value ? 5 : 4, 2);
    if (!plan.gradient_only) {
        const bool sliced = plan.divergence.strategy == Strategy::sliced;
        if (sliced) {
            launch_slices(plan, kernels, args, stream);
        } else {
            launch_whole_rows(plan, kernels, args, stream);
        }
    }
    if (!plan.separate_gradient) return;
    if (!plan.gradient_only) args.params.state_given = args.params.state;
    args.slices = static_cast<int>(plan.gradient.slices);
    args.slice_columns = static_cast<int>(plan.gradient.slice_columns);
    launch(kernels.gradient[plan.variant], plan.gradient.launch, stream, args);
}

void scale_rows(std::int64_t rows, std::int64_t columns, const Rows<void>& grad, const std::uint8_t* kinds,
                const float* factor, int device, Stream stream) {
    if (rows == 0) return;
    const DeviceGuard guard(device);
    const int element = size_of(grad.dtype);
    const auto kernel = kernels_for(grad.dtype).scale;
    const RowShape shape{rows, columns, 16 / element, 2 * element, false, true, true};
    const LaunchPlan plan = plan_one_pass(gpu(device), shape, on_device(device, kernel));
    launch(kernel, plan.launch, stream, grad, kinds, factor, static_cast<int>(rows), static_cast<int>(columns),
           static_cast<int>(plan.slices), static_cast<int>(plan.slice_columns));
}

}  // namespace sad::cuda
