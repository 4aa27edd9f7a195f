// The launches of the losses against top-k columns and labels.
#include <algorithm>

#include "dispatch.h"
#include "kernels.h"
#include "launch_plan.h"
#include "supervised_rows.cuh"
#include "topk_rows.cuh"

namespace sad::cuda {
namespace {

// Returns the number of columns whose bits fit shared memory, with as many blocks on an SM as the registers allow.
std::int64_t window_columns(const Gpu& gpu, std::int64_t vocab, std::int64_t blocks_per_sm) {
    constexpr std::int64_t least = 64;  // bytes
    const std::int64_t share = gpu.sm_shared_bytes / blocks_per_sm - reserved_shared_bytes;
    const std::int64_t bytes = std::max(least, std::min(share, gpu.block_shared_bytes) - reduction_buffer_bytes) / 16 * 16;
    return std::min((vocab + 31) / 32 * 32, 8 * bytes);
}

}  // namespace

std::int64_t topk_span_kl_scratch_bytes(const TopkSpanKlParams& topk) { return 4 * (topk.base.rows + 2); }

void topk_span_kl(const TopkSpanKlParams& topk, void* scratch, int device, Stream stream) {
    const SpanKlParams& params = topk.base;
    if (params.rows == 0) return;
    const DeviceGuard guard(device);
    const Gpu& properties = gpu(device);
    auto* const entries = static_cast<std::int32_t*>(scratch);
    const RowIndex index{entries, entries + params.rows, false};
    const bool gradient_only = params.state_given != nullptr, stats = params.argmax != nullptr;
    const bool grad_aligned = params.grad.data && same_alignment(params.student.rows, params.grad, params.rows);
    // Without a rest, every row would be deferred.
    const bool has_rest = topk.k + 1 < params.vocab;
    const bool lean = has_rest && params.student.cap == 0.0f && (grad_aligned || !params.grad.data) && !stats;

    const int element = size_of(params.student.rows.dtype);
    const bool two_passes = params.value && (params.grad.data || stats);
    const auto threads = static_cast<unsigned>(std::min(properties.max_block_threads, 512));
    launch(&collect_rows_kernel, LaunchShape{1, threads, reduction_buffer_bytes, 1}, stream, params, index, gradient_only, 4,
           1);
    TopkLaunchArgs args{topk,
                        exponent_of(params.student, params.temperature),
                        params.student.scale / params.temperature,
                        index,
                        grad_aligned,
                        0};
    const auto launch_rows = [&](bool by_lean) {
        const auto kernel = kernels_for(params.student.rows.dtype).topk[by_lean];
        const std::int64_t window = window_columns(properties, params.vocab, by_lean ? 2 : 1);
        const LaunchPlan plan = streamed_plan(
            properties, {params.rows, params.vocab, 16 / element, element, two_passes, true, by_lean},
            [&](const LaunchShape& shape) { return blocks_at_once(kernel, device, shape); },
            reduction_buffer_bytes + window / 8);
        args.window = static_cast<int>(window);
        launch(kernel, plan.launch, stream, args);
    };
    launch_rows(lean);
    if (lean && !gradient_only) {
        args.index.deferred_only = true;
        launch_rows(false);
    }
}

}  // namespace sad::cuda
