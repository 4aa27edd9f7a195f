// Python names of the CPU kernels. Arguments are addresses and sizes: PyTorch is neither included nor linked.
#include <stdexcept>
#include <string>
#include <vector>

#include "buffer.h"
#include "dispatch.h"
#include "span_ids.h"
#include "topk_span_kl.h"
#include "topk_span_kl_binding.h"

using namespace sad;
using namespace sad::cpu;

namespace {

const Kernels& require(const std::string& isa) {
    const Kernels* found = kernels_for(isa);
    if (!found) throw std::invalid_argument("isa: this processor or build has no '" + isa + "'");
    return *found;
}

void run_span_kl(const SpanKlParams& params, int threads, const std::string& isa) { span_kl(params, require(isa), threads); }

void run_topk_span_kl(const SpanKlParams& params, std::int64_t listed, Address columns, Address log_p, Address log_tail,
                      Address labels, float alpha, int threads, const std::string& isa) {
    topk_span_kl(with_lists(params, listed, columns, log_p, log_tail, labels, alpha), require(isa), threads);
}

void bind_scale_rows(std::int64_t rows, std::int64_t columns, const RowsTuple& grad, Address kinds, float factor,
                     int threads, const std::string& isa) {
    const Kernels& kernels = require(isa);
    const py::gil_scoped_release released;
    scale_rows(rows, columns, as_rows<void>(grad), as_pointer<const std::uint8_t>(kinds), factor, kernels, threads);
}

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const Kernels& k : all_kernels()) {
        if (k.supported) names.emplace_back(k.isa);
    }
    return names;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "CPU kernels on raw pointers; see sadkernels.native for their launchers.";
    m.def("supported_isas", &supported_isas, "Instruction sets of this build that the processor has, best first.");
    py::class_<Buffer>(m, "Buffer", py::buffer_protocol(), "Memory of arbitrary contents; see buffer.h.")
        .def(py::init<std::size_t>(), py::arg("bytes"))
        .def_buffer([](Buffer& b) {
            return py::buffer_info(static_cast<std::uint8_t*>(b.data()), static_cast<py::ssize_t>(b.size()));
        })
        .def_static("forget", &Buffer::forget, "Gives what is kept for the next call back to the system.");
    define_with_params(m, "span_kl", &run_span_kl, py::arg("threads"), py::arg("isa"));
    define_with_params(m, "topk_span_kl", &run_topk_span_kl, py::arg("listed"), py::arg("columns"), py::arg("log_p"),
                       py::arg("log_tail"), py::arg("labels"), py::arg("alpha"), py::arg("threads"), py::arg("isa"));
    m.def("scale_rows", &bind_scale_rows, py::kw_only(), py::arg("rows"), py::arg("columns"), py::arg("grad"),
          py::arg("kinds"), py::arg("factor"), py::arg("threads"), py::arg("isa"));
    m.def(
        "span_ids_from_offsets",
        [](Address offsets, std::int64_t batch, std::int64_t tokens, Address starts, Address ends, Address kinds,
           Address row_splits, Address ids, Address m_r, Address m_a, int threads) {
            const py::gil_scoped_release released;
            span_ids_from_offsets(as_pointer<const std::int64_t>(offsets), batch, tokens,
                                  as_pointer<const std::int64_t>(starts), as_pointer<const std::int64_t>(ends),
                                  as_pointer<const std::uint8_t>(kinds), as_pointer<const std::int64_t>(row_splits),
                                  as_pointer<std::uint8_t>(ids), as_pointer<std::uint8_t>(m_r),
                                  as_pointer<std::uint8_t>(m_a), threads);
        },
        py::kw_only(), py::arg("offsets"), py::arg("batch"), py::arg("tokens"), py::arg("starts"), py::arg("ends"),
        py::arg("kinds"), py::arg("row_splits"), py::arg("ids"), py::arg("m_r"), py::arg("m_a"), py::arg("threads"));
}
