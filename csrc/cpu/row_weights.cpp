#include <vector>

#include "kernels.h"

namespace sad::cpu {
namespace {

constexpr int reason = 1, act = 2, observe = 3;

// A run of rows up to `end`, and the sum of the weights of its supervised tokens.
struct Turn {
    std::int64_t end;
    double total;
};

bool has_no_token(const RowWeightsParams& params, std::int64_t row) {
    return params.shift && row % params.tokens == params.tokens - 1;
}

// The kinds of the ids alone. Equality does not depend on the sign of the type.
template <typename Id>
void write_kinds(const RowWeightsParams& params) {
    const Id* ids = static_cast<const Id*>(params.ids);
    const Id last = params.lambda_observe > 0.0 ? observe : act;
    for (std::int64_t row = 0; row < params.rows; ++row) {
        const Id id = has_no_token(params, row) ? Id{0} : ids[row + params.shift];
        params.kinds[row] = id >= reason && id <= last ? static_cast<std::uint8_t>(id) : std::uint8_t{0};
    }
}

// The weight of a supervised row's token.
double token_weight(const RowWeightsParams& params, std::int64_t row) {
    return params.token_weights ? static_cast<double>(params.token_weights[row + params.shift]) : 1.0;
}

// Rows with equal numbers next to each other in a sequence are one turn.
std::int64_t turn_id(const RowWeightsParams& params, std::int64_t row) {
    if (params.turn_ids) return has_no_token(params, row) ? 0 : params.turn_ids[row + params.shift];
    const int kind = params.kinds[row];
    return kind == act ? reason : kind;
}

std::vector<Turn> find_turns(const RowWeightsParams& params) {
    std::vector<Turn> turns;
    for (std::int64_t row = 0; row < params.rows;) {
        const std::int64_t id = turn_id(params, row), sequence_end = row - row % params.tokens + params.tokens;
        Turn turn{row, 0.0};
        for (; turn.end < sequence_end && turn_id(params, turn.end) == id; ++turn.end) {
            if (params.kinds[turn.end]) turn.total += token_weight(params, turn.end);
        }
        turns.push_back(turn);
        row = turn.end;
    }
    return turns;
}

// A token of weight 0 is as one without a span.
void drop_weightless(const RowWeightsParams& params) {
    for (std::int64_t row = 0; row < params.rows; ++row) {
        if (params.kinds[row] && !(token_weight(params, row) > 0.0)) params.kinds[row] = 0;
    }
}

// lambda / d of each kind, and 0 for a lambda of 0. Without token weights the division is in float.
struct KindWeights {
    double of_kind[4];

    KindWeights(const RowWeightsParams& params, const double (&divisors)[4]) {
        const double lambdas[] = {0.0, params.lambda_reason, params.lambda_act, params.lambda_observe};
        for (int kind = 0; kind < 4; ++kind) {
            const double exact = lambdas[kind] / divisors[kind];
            const double rounded = static_cast<float>(lambdas[kind]) / static_cast<float>(divisors[kind]);
            const bool is_exact = params.token_weights || params.reduction == Reduction::turn_mean;
            of_kind[kind] = lambdas[kind] == 0.0 ? 0.0 : is_exact ? exact : rounded;
        }
    }
};

void write_weight(const RowWeightsParams& params, std::int64_t row, const KindWeights& weights) {
    const std::uint8_t kind = params.kinds[row];
    const double weight = weights.of_kind[kind];
    params.weights[row] = static_cast<float>(kind && params.token_weights ? weight * token_weight(params, row) : weight);
    if (params.read) params.read[row] = params.weights[row] == 0.0f ? std::uint8_t{0} : kind;
}

void write_turn_means(const RowWeightsParams& params, const std::vector<Turn>& turns) {
    double count = 0.0;
    for (const Turn& turn : turns) count += turn.total > 0.0;
    if (params.normalizer) count = params.normalizer[0];
    std::int64_t row = 0;
    for (const Turn& turn : turns) {
        const double divisor = turn.total * count;
        const KindWeights weights(params, {1.0, divisor, divisor, divisor});
        for (; row < turn.end; ++row) write_weight(params, row, weights);
    }
}

void write_kind_means(const RowWeightsParams& params) {
    double divisors[] = {1.0, 1.0, 1.0, 1.0};
    if (params.normalizer) {
        for (int kind : {reason, act, observe}) divisors[kind] = params.normalizer[kind - 1];
    } else if (params.reduction == Reduction::mean || params.reduction == Reduction::span_mean) {
        double totals[] = {0.0, 0.0, 0.0, 0.0};
        for (std::int64_t row = 0; row < params.rows; ++row) {
            if (params.kinds[row]) totals[params.kinds[row]] += token_weight(params, row);
        }
        const double all = totals[reason] + totals[act] + totals[observe];
        for (int kind : {reason, act, observe}) {
            const double total = params.reduction == Reduction::mean ? all : totals[kind];
            divisors[kind] = total == 0.0 ? 1.0 : total;
        }
    }
    const KindWeights weights(params, divisors);
    for (std::int64_t row = 0; row < params.rows; ++row) write_weight(params, row, weights);
}

void write_ones(const RowWeightsParams& params) {
    for (std::int64_t row = 0; row < params.rows; ++row) params.weights[row] = params.kinds[row] ? 1.0f : 0.0f;
}

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
    const bool per_turn = params.reduction == Reduction::turn_mean;
    const std::vector<Turn> turns = per_turn ? find_turns(params) : std::vector<Turn>();
    if (params.token_weights) drop_weightless(params);
    std::int64_t counts[4] = {};
    for (std::int64_t row = 0; row < params.rows; ++row) ++counts[params.kinds[row]];
    for (int kind : {reason, act, observe}) params.counts[kind - 1] = counts[kind];
    if (params.reduction == Reduction::none) {
        write_ones(params);
    } else if (per_turn) {
        write_turn_means(params, turns);
    } else {
        write_kind_means(params);
    }
}

}  // namespace sad::cpu
