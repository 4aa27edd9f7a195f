// The Python side of `TopkSpanKlParams`: what comes behind `SpanKlParams`, the same for every compiled backend.
#pragma once

#include "span_kl_binding.h"
#include "topk_span_kl_params.h"

namespace sad {

inline TopkSpanKlParams with_lists(const SpanKlParams& params, std::int64_t listed, Address columns, Address log_p,
                                   Address log_tail, Address labels, float alpha) {
    return {params,
            listed,
            as_pointer<const std::int32_t>(columns),
            as_pointer<const float>(log_p),
            as_pointer<const float>(log_tail),
            as_pointer<const std::int32_t>(labels),
            alpha};
}

}  // namespace sad
