#include <algorithm>

#include "kernels.h"

namespace sad::cpu {
namespace {

constexpr int reason = 1, act = 2;

// Equality with 1 and 2 does not depend on the sign of the type.
template <typename Id>
void write_kinds(const RowWeightsParams& params) {
    const Id* ids = static_cast<const Id*>(params.ids);
    std::int64_t counts[3] = {0, 0, 0};
    for (std::int64_t row = 0; row < params.rows; ++row) {
        const bool last = params.shift && row % params.tokens == params.tokens - 1;
        const Id id = last ? Id{0} : ids[row + params.shift];
        const int kind = id == reason ? reason : id == act ? act : 0;
        params.kinds[row] = static_cast<std::uint8_t>(kind);
        ++counts[kind];
    }
    params.counts[0] = counts[reason];
    params.counts[1] = counts[act];
}

float divided(float lambda, float normalizer) { return lambda == 0.0f ? 0.0f : lambda / normalizer; }

}  // namespace

void row_weights(const RowWeightsParams& params) {
    switch (params.id_bytes) {
        case 1:
            write_kinds<std::uint8_t>(params);
            break;
        case 2:
            write_kinds<std::uint16_t>(params);
            break;
        case 4:
            write_kinds<std::uint32_t>(params);
            break;
        default:
            write_kinds<std::uint64_t>(params);
    }
    float by_kind[3] = {0.0f, params.lambda_reason, params.lambda_act};
    if (params.divide) {
        const std::int64_t both = params.counts[0] + params.counts[1];
        for (int kind : {reason, act}) {
            const std::int64_t count = std::max<std::int64_t>(params.per_kind ? params.counts[kind - 1] : both, 1);
            const float normalizer = params.normalizer ? params.normalizer[kind - 1] : static_cast<float>(count);
            by_kind[kind] = divided(by_kind[kind], normalizer);
        }
    }
    for (std::int64_t row = 0; row < params.rows; ++row) {
        const std::uint8_t kind = params.kinds[row];
        params.weights[row] = by_kind[kind];
        if (params.read) params.read[row] = by_kind[kind] == 0.0f ? std::uint8_t{0} : kind;
    }
}

}  // namespace sad::cpu
