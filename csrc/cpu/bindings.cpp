// The Python names of the CPU kernels. Arguments are addresses and sizes: this file neither includes nor links PyTorch.
#include <stdexcept>
#include <string>
#include <vector>

#include "buffer.h"
#include "dispatch.h"
#include "kernels.h"
#include "params_binding.h"

using namespace sad;
using namespace sad::cpu;

namespace {

const RowPasses& passes_for(const std::string& isa) {
    const RowPasses* found = row_passes_for(isa);
    if (!found) throw std::invalid_argument("isa: this processor or build has no '" + isa + "'");
    return *found;
}

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const RowPasses& passes : all_row_passes()) {
        if (passes.supported) names.emplace_back(passes.isa);
    }
    return names;
}

void bind_scale_rows(std::int64_t rows, std::int64_t columns, const FromPython<Rows<void>>::type& grad, Address kinds,
                     float factor, int threads, const std::string& isa) {
    scale_rows(rows, columns, FromPython<Rows<void>>::convert(grad), as_pointer<const std::uint8_t>(kinds), factor,
               passes_for(isa), threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    using WithoutGil = py::call_guard<py::gil_scoped_release>;
    m.doc() = "CPU kernels on raw pointers; see sadkernels.native for their launchers.";
    bind_params(m);
    m.def("supported_isas", &supported_isas, "Returns the instruction sets that build and processor support, best first.");
    py::class_<Buffer>(m, "Buffer", py::buffer_protocol(), "Uninitialized memory; see buffer.h.")
        .def(py::init<std::size_t>(), py::arg("bytes"))
        .def_buffer([](Buffer& b) {
            return py::buffer_info(static_cast<std::uint8_t*>(b.data()), static_cast<py::ssize_t>(b.size()));
        })
        .def_static("clear_cache", &Buffer::clear_cache, "Returns the memory that is kept for the next call to the system.");
    m.def(
        "span_kl",
        [](const SpanKlParams& params, int threads, const std::string& isa) { span_kl(params, passes_for(isa), threads); },
        WithoutGil(), py::arg("params"), py::arg("threads"), py::arg("isa"));
    m.def(
        "topk_span_kl",
        [](const TopkSpanKlParams& params, int threads, const std::string& isa) {
            topk_span_kl(params, passes_for(isa), threads);
        },
        WithoutGil(), py::arg("params"), py::arg("threads"), py::arg("isa"));
    m.def("scale_rows", &bind_scale_rows, WithoutGil(), py::kw_only(), py::arg("rows"), py::arg("columns"), py::arg("grad"),
          py::arg("kinds"), py::arg("factor"), py::arg("threads"), py::arg("isa"));
    // clang-format off
    bind_struct(m, "RowWeightsParams",
                field("rows", &RowWeightsParams::rows),
                field("tokens", &RowWeightsParams::tokens),
                field("ids", &RowWeightsParams::ids),
                field("id_bytes", &RowWeightsParams::id_bytes),
                field("token_weights", &RowWeightsParams::token_weights),
                field("turn_ids", &RowWeightsParams::turn_ids),
                field("normalizer", &RowWeightsParams::normalizer),
                field("lambda_reason", &RowWeightsParams::lambda_reason),
                field("lambda_act", &RowWeightsParams::lambda_act),
                field("lambda_observe", &RowWeightsParams::lambda_observe),
                field("reduction", &RowWeightsParams::reduction),
                field("shift", &RowWeightsParams::shift),
                field("kinds", &RowWeightsParams::kinds),
                field("read", &RowWeightsParams::read),
                field("weights", &RowWeightsParams::weights),
                field("counts", &RowWeightsParams::counts));
    // clang-format on
    m.def("row_weights", &row_weights, WithoutGil(), py::arg("params"));
    m.def("span_ids_from_offsets", &span_ids_from_offsets, WithoutGil(), py::arg("params"), py::arg("threads"));
}
