// Python names of the CPU kernels. Arguments are addresses and sizes: PyTorch is neither included nor linked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "buffer.h"
#include "dispatch.h"
#include "span_ids.h"

namespace py = pybind11;
using namespace sad::cpu;

namespace {

using Address = std::uintptr_t;
using RowsTuple = std::tuple<Address, int, std::int64_t, std::int64_t, std::int64_t>;

template <typename T>
Rows<T> as_rows(const RowsTuple& t) {
    return {reinterpret_cast<T*>(std::get<0>(t)), static_cast<Dtype>(std::get<1>(t)), std::get<2>(t), std::get<3>(t),
            std::get<4>(t)};
}

template <typename T>
T* as_pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

const Kernels& require(const std::string& isa) {
    const Kernels* found = kernels_for(isa);
    if (!found) throw std::invalid_argument("isa: this processor or build has no '" + isa + "'");
    return *found;
}

void bind_span_kl(std::int64_t rows, std::int64_t vocab, std::int64_t student_columns, const RowsTuple& student,
                  const RowsTuple& teacher, const RowsTuple& grad, std::pair<float, float> scales,
                  std::pair<float, float> caps, int divergence, float beta, float temperature, Address kinds,
                  Address weights, Address lse_given, Address state_given, Address value, Address state, Address entropies,
                  Address argmax, int threads, const std::string& isa) {
    const SpanKlParams params{rows,
                              vocab,
                              student_columns,
                              {as_rows<const void>(student), scales.first, caps.first},
                              {as_rows<const void>(teacher), scales.second, caps.second},
                              as_rows<void>(grad),
                              static_cast<Divergence>(divergence),
                              beta,
                              temperature,
                              as_pointer<const std::uint8_t>(kinds),
                              as_pointer<const float>(weights),
                              as_pointer<const float>(lse_given),
                              as_pointer<const float>(state_given),
                              as_pointer<float>(value),
                              as_pointer<float>(state),
                              as_pointer<float>(entropies),
                              as_pointer<std::int32_t>(argmax)};
    const Kernels& kernels = require(isa);
    const py::gil_scoped_release released;
    span_kl(params, kernels, threads);
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
    py::class_<Buffer>(m, "Buffer", py::buffer_protocol(), "Memory of arbitrary contents for a gradient; see buffer.h.")
        .def(py::init<std::size_t>(), py::arg("bytes"))
        .def_buffer([](Buffer& b) {
            return py::buffer_info(static_cast<std::uint8_t*>(b.data()), static_cast<py::ssize_t>(b.size()));
        });
    m.def("span_kl", &bind_span_kl, py::kw_only(), py::arg("rows"), py::arg("vocab"), py::arg("student_columns"),
          py::arg("student"), py::arg("teacher"), py::arg("grad"), py::arg("scales"), py::arg("caps"), py::arg("divergence"),
          py::arg("beta"), py::arg("temperature"), py::arg("kinds"), py::arg("weights"), py::arg("lse_given"),
          py::arg("state_given"), py::arg("value"), py::arg("state"), py::arg("entropies"), py::arg("argmax"),
          py::arg("threads"), py::arg("isa"));
    m.def("scale_rows", &bind_scale_rows, py::kw_only(), py::arg("rows"), py::arg("columns"), py::arg("grad"),
          py::arg("kinds"), py::arg("factor"), py::arg("threads"), py::arg("isa"));
    m.def(
        "span_ids_from_offsets",
        [](Address offsets, std::int64_t batch, std::int64_t tokens, Address starts, Address ends, Address kinds,
           Address row_splits, Address ids, int threads) {
            const py::gil_scoped_release released;
            span_ids_from_offsets(
                reinterpret_cast<const std::int64_t*>(offsets), batch, tokens, reinterpret_cast<const std::int64_t*>(starts),
                reinterpret_cast<const std::int64_t*>(ends), reinterpret_cast<const std::uint8_t*>(kinds),
                reinterpret_cast<const std::int64_t*>(row_splits), reinterpret_cast<std::uint8_t*>(ids), threads);
        },
        py::kw_only(), py::arg("offsets"), py::arg("batch"), py::arg("tokens"), py::arg("starts"), py::arg("ends"),
        py::arg("kinds"), py::arg("row_splits"), py::arg("ids"), py::arg("threads"));
}
