// The launches of the losses against listed columns and labels.
#include <algorithm>

#include "topk_rows.cuh"
#include "operands.h"
#include "plan.h"
#include "supervised_rows.cuh"
#include "topk_span_kl.h"

namespace sad::cuda {
namespace {

// Columns whose bits fit beside each other, so that as many blocks as the registers allow stay on an SM.
std::int64_t window_columns(const Card& card, std::int64_t vocab, std::int64_t blocks_on_an_sm) {
    constexpr std::int64_t least = 64;  // bytes
    const std::int64_t share = card.processor_shared_bytes / blocks_on_an_sm - reserved_shared_bytes;
    const std::int64_t bytes = std::max(least, std::min(share, card.block_shared_bytes) - board_bytes) / 16 * 16;
    return std::min((vocab + 31) / 32 * 32, 8 * bytes);
}

}  // namespace

std::int64_t topk_span_kl_scratch_bytes(std::int64_t rows) { return 4 * (rows + 1); }

void topk_span_kl(const TopkSpanKlParams& p, void* scratch, int device, Stream stream) {
    const SpanKlParams& a = p.base;
    if (a.rows == 0) return;
    const DeviceGuard guard(device);
    const Card& on = card(device);
    auto* const index = static_cast<std::int32_t*>(scratch);
    const bool gradient_only = a.state_given != nullptr, stats = a.argmax != nullptr;
    const bool grad_wide = a.grad.data && same_phase(a.student.rows, a.grad);
    const bool is_lean = a.student.cap == 0.0f && (grad_wide || !a.grad.data) && !stats;

    const int element = size_of(a.student.rows.dtype);
    const bool two_passes = a.value && (a.grad.data || stats);
    Plan plan = streamed_plan(on, {a.rows, a.vocab, 16 / element, element, two_passes, true, is_lean});
    const std::int64_t window = window_columns(on, a.vocab, is_lean ? 2 : 1);
    plan.rows.shared_bytes = static_cast<std::size_t>(board_bytes + window / 8);

    const auto threads = static_cast<unsigned>(std::min(on.block_threads, 512));
    launch(&collect_rows_kernel, Launch{1, threads, board_bytes, 1}, stream, a, index, gradient_only, 2, 1);
    const TopkWork work{p,
                          exponent_of(a.student, a.temperature),
                          a.student.scale / a.temperature,
                          index,
                          grad_wide,
                          static_cast<int>(window)};
    launch(kernels_of(a.student.rows.dtype).listed[is_lean], plan.rows, stream, work);
}

}  // namespace sad::cuda
