// Python names of the CUDA kernels. Arguments are addresses and sizes: PyTorch is neither included nor linked. Nothing here
// needs a GPU or a driver until a kernel is called.
#include <sstream>
#include <string>
#include <vector>

#include "plan.h"
#include "runtime.h"
#include "span_ids.h"
#include "span_kl.h"
#include "topk_span_kl.h"
#include "topk_span_kl_binding.h"

#if !defined(SAD_CUDA_ARCHS)
#define SAD_CUDA_ARCHS ""
#endif

using namespace sad;
using namespace sad::cuda;

namespace {

Stream as_stream(Address address) { return reinterpret_cast<Stream>(address); }

std::int64_t bind_scratch_bytes(const SpanKlParams& params, int device) { return span_kl_scratch_bytes(params, device); }

void bind_span_kl(const SpanKlParams& params, Address scratch, int device, Address stream) {
    span_kl(params, as_pointer<void>(scratch), device, as_stream(stream));
}

void bind_topk_span_kl(const SpanKlParams& params, std::int64_t listed, Address columns, Address log_p, Address log_tail,
                       Address labels, float alpha, Address scratch, int device, Address stream) {
    topk_span_kl(with_lists(params, listed, columns, log_p, log_tail, labels, alpha), as_pointer<void>(scratch), device,
                 as_stream(stream));
}

void bind_scale_rows(std::int64_t rows, std::int64_t columns, const RowsTuple& grad, Address kinds, Address factor,
                     int device, Address stream) {
    const py::gil_scoped_release released;
    scale_rows(rows, columns, as_rows<void>(grad), as_pointer<const std::uint8_t>(kinds), as_pointer<const float>(factor),
               device, as_stream(stream));
}

void bind_span_ids(Address offsets, std::int64_t batch, std::int64_t tokens, Address starts, Address ends, Address kinds,
                   Address row_splits, Address ids, Address m_r, Address m_a, int device, Address stream) {
    const py::gil_scoped_release released;
    span_ids_from_offsets(as_pointer<const std::int64_t>(offsets), batch, tokens, as_pointer<const std::int64_t>(starts),
                          as_pointer<const std::int64_t>(ends), as_pointer<const std::uint8_t>(kinds),
                          as_pointer<const std::int64_t>(row_splits), as_pointer<std::uint8_t>(ids),
                          as_pointer<std::uint8_t>(m_r), as_pointer<std::uint8_t>(m_a), device, as_stream(stream));
}

std::vector<std::string> architectures() {
    std::istringstream words(SAD_CUDA_ARCHS);
    std::vector<std::string> names;
    for (std::string name; words >> name;) names.push_back(name);
    return names;
}

#if defined(SAD_EMULATED)

constexpr bool is_emulated = true;
int runtime_version() { return 0; }
int driver_version() { return 0; }
int device_count() { return 0; }

#else

constexpr bool is_emulated = false;

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    cudaGetLastError();  // so that the next call does not report it
    return 0;
}

#endif

// The plan for rows of one dtype on both sides, on a card of these figures.
py::dict plan(int processors, int arch, std::int64_t l2_bytes, std::int64_t block_shared_bytes,
              std::int64_t processor_shared_bytes, std::int64_t rows, std::int64_t vocab, int element_bytes, bool lean) {
    const Card card{processors, arch, l2_bytes, block_shared_bytes, processor_shared_bytes, 1024};
    const Plan made = plan_rows(card, {rows, vocab, 16 / element_bytes, 2 * element_bytes, true, true, lean});
    const char* const ways[] = {"resident", "streamed", "sliced"};
    py::dict found;
    found["way"] = ways[static_cast<int>(made.way)];
    found["blocks"] = made.rows.blocks;
    found["threads"] = made.rows.threads;
    found["shared_bytes"] = made.rows.shared_bytes;
    found["cluster"] = made.rows.cluster;
    found["slices"] = made.slices;
    found["slice_columns"] = made.slice_columns;
    return found;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels on raw pointers; see sadkernels.native for their launchers.";
    m.def("architectures", &architectures, "What the kernels were compiled for: sm_90 machine code, compute_90 PTX.");
    m.def("runtime_version", &runtime_version, "CUDA version of the runtime linked in, 13000 for 13.0.");
    m.def("driver_version", &driver_version, "Newest CUDA version that the driver can run, 0 without a driver.");
    m.def("device_count", &device_count, "GPUs that the driver shows, 0 without a driver.");
    m.def("emulated", [] { return is_emulated; }, "Whether the kernels were built for the host, to be tested on it.");
#if defined(SAD_EMULATED)
    m.def(
        "set_emulated_card",
        [](int processors, int arch, std::int64_t l2_bytes, std::int64_t block_shared_bytes,
           std::int64_t processor_shared_bytes) {
            emulated_card() = {processors, arch, l2_bytes, block_shared_bytes, processor_shared_bytes, 64};
        },
        py::kw_only(), py::arg("processors"), py::arg("arch"), py::arg("l2_bytes"), py::arg("block_shared_bytes"),
        py::arg("processor_shared_bytes"), "The card that the plans of the following launches are made for.");
#endif
    m.def("plan", &plan, py::kw_only(), py::arg("processors"), py::arg("arch"), py::arg("l2_bytes"),
          py::arg("block_shared_bytes"), py::arg("processor_shared_bytes"), py::arg("rows"), py::arg("vocab"),
          py::arg("element_bytes"), py::arg("lean"), "How the rows of a call would be walked; see plan.h.");
    define_with_params(m, "span_kl_scratch_bytes", &bind_scratch_bytes, py::arg("device"));
    define_with_params(m, "span_kl", &bind_span_kl, py::arg("scratch"), py::arg("device"), py::arg("stream"));
    m.def("topk_span_kl_scratch_bytes", &topk_span_kl_scratch_bytes, py::kw_only(), py::arg("rows"));
    define_with_params(m, "topk_span_kl", &bind_topk_span_kl, py::arg("listed"), py::arg("columns"), py::arg("log_p"),
                       py::arg("log_tail"), py::arg("labels"), py::arg("alpha"), py::arg("scratch"), py::arg("device"),
                       py::arg("stream"));
    m.def("scale_rows", &bind_scale_rows, py::kw_only(), py::arg("rows"), py::arg("columns"), py::arg("grad"),
          py::arg("kinds"), py::arg("factor"), py::arg("device"), py::arg("stream"));
    m.def("span_ids_from_offsets", &bind_span_ids, py::kw_only(), py::arg("offsets"), py::arg("batch"), py::arg("tokens"),
          py::arg("starts"), py::arg("ends"), py::arg("kinds"), py::arg("row_splits"), py::arg("ids"), py::arg("m_r"),
          py::arg("m_a"), py::arg("device"), py::arg("stream"));
}
