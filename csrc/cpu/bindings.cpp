// Python names of the CPU kernels. Arguments are addresses and sizes: PyTorch is neither included nor linked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "dispatch.h"
#include "span_ids.h"
#include "threads.h"

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

const Kernels& require(const std::string& isa) {
    const Kernels* found = kernels_for(isa);
    if (!found) throw std::invalid_argument("isa: this processor or build has no '" + isa + "'");
    return *found;
}

// Rows that one thread takes at a time: some 256 KB of logits.
std::int64_t chunk_of_rows(std::int64_t vocab) {
    return std::max<std::int64_t>(1, (1 << 16) / std::max<std::int64_t>(vocab, 1));
}

void span_kl(std::int64_t rows, std::int64_t vocab, std::int64_t student_columns, const RowsTuple& student,
             const RowsTuple& teacher, const RowsTuple& grad, Address kinds, Address weights, Address lse_given, Address kl,
             Address lse, Address extras, float temperature, int threads, const std::string& isa) {
    const SpanKlParams params{rows,
                              vocab,
                              student_columns,
                              as_rows<const void>(student),
                              as_rows<const void>(teacher),
                              as_rows<void>(grad),
                              reinterpret_cast<const std::uint8_t*>(kinds),
                              reinterpret_cast<const float*>(weights),
                              reinterpret_cast<const float*>(lse_given),
                              reinterpret_cast<float*>(kl),
                              reinterpret_cast<float*>(lse),
                              reinterpret_cast<float*>(extras),
                              temperature};
    const Kernels& k = require(isa);
    const py::gil_scoped_release released;
    parallel_for(rows, chunk_of_rows(vocab), threads,
                 [&](std::int64_t begin, std::int64_t end) { k.span_kl(params, begin, end); });
}

void scale_rows(std::int64_t rows, std::int64_t columns, const RowsTuple& grad, Address kinds, float factor, int threads,
                const std::string& isa) {
    const ScaleParams params{rows, columns, as_rows<void>(grad), reinterpret_cast<const std::uint8_t*>(kinds), factor};
    const Kernels& k = require(isa);
    const py::gil_scoped_release released;
    parallel_for(rows, chunk_of_rows(columns), threads,
                 [&](std::int64_t begin, std::int64_t end) { k.scale(params, begin, end); });
}

// Asks for huge pages under a buffer that was just allocated: its first touch then costs 1/512 of the page faults.
void advise_huge_pages(Address data, std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const auto page = static_cast<Address>(sysconf(_SC_PAGESIZE));
    const Address begin = (data + page - 1) / page * page, end = (data + bytes) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: failure is harmless
#else
    (void)data, (void)bytes;
#endif
}

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const Kernels& k : kernels()) {
        if (k.supported) names.emplace_back(k.isa);
    }
    return names;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "CPU kernels on raw pointers; see sadkernels.native for their launchers.";
    m.def("supported_isas", &supported_isas, "Instruction sets of this build that the processor has, best first.");
    m.def("advise_huge_pages", &advise_huge_pages, py::arg("data"), py::arg("bytes"));
    m.def("span_kl", &span_kl, py::kw_only(), py::arg("rows"), py::arg("vocab"), py::arg("student_columns"),
          py::arg("student"), py::arg("teacher"), py::arg("grad"), py::arg("kinds"), py::arg("weights"),
          py::arg("lse_given"), py::arg("kl"), py::arg("lse"), py::arg("extras"), py::arg("temperature"), py::arg("threads"),
          py::arg("isa"));
    m.def("scale_rows", &scale_rows, py::kw_only(), py::arg("rows"), py::arg("columns"), py::arg("grad"), py::arg("kinds"),
          py::arg("factor"), py::arg("threads"), py::arg("isa"));
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
