// The Python names of the CUDA kernels. Arguments are addresses and sizes: this file neither includes nor links PyTorch. No
// function needs a GPU or a driver until a kernel is launched.
#include <sstream>
#include <string>
#include <vector>

#include "kernels.h"
#include "launch_plan.h"
#include "params_binding.h"
#include "runtime.h"

#if !defined(SAD_CUDA_ARCHS)
#define SAD_CUDA_ARCHS ""
#endif

using namespace sad;
using namespace sad::cuda;

namespace {

Stream as_stream(Address address) { return reinterpret_cast<Stream>(address); }

void bind_span_kl(const SpanKlParams& params, Address scratch, int device, Address stream) {
    span_kl(params, as_pointer<void>(scratch), device, as_stream(stream));
}

void bind_topk_span_kl(const TopkSpanKlParams& params, Address scratch, int device, Address stream) {
    topk_span_kl(params, as_pointer<void>(scratch), device, as_stream(stream));
}

void bind_scale_rows(std::int64_t rows, std::int64_t columns, const FromPython<Rows<void>>::type& grad, Address kinds,
                     Address factor, int device, Address stream) {
    scale_rows(rows, columns, FromPython<Rows<void>>::convert(grad), as_pointer<const std::uint8_t>(kinds),
               as_pointer<const float>(factor), device, as_stream(stream));
}

void bind_span_ids(const SpanIdsParams& params, int device, Address stream) {
    span_ids_from_offsets(params, device, as_stream(stream));
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
    cudaGetLastError();  // clears the error, so that the next CUDA call does not report it
    return 0;
}

#endif

// Returns the launch plan for rows of one dtype on both sides, on a GPU with these properties.
py::dict plan(int sms, int arch, std::int64_t l2_bytes, std::int64_t block_shared_bytes, std::int64_t sm_shared_bytes,
              std::int64_t rows, std::int64_t vocab, int element_bytes, bool lean) {
    const Gpu gpu{sms, arch, l2_bytes, block_shared_bytes, sm_shared_bytes, 1024};
    const LaunchPlan made = plan_rows(gpu, {rows, vocab, 16 / element_bytes, 2 * element_bytes, true, true, lean});
    const char* const strategies[] = {"resident", "streamed", "sliced"};
    py::dict found;
    found["strategy"] = strategies[static_cast<int>(made.strategy)];
    found["blocks"] = made.launch.blocks;
    found["threads"] = made.launch.threads;
    found["shared_bytes"] = made.launch.shared_bytes;
    found["cluster"] = made.launch.cluster;
    found["slices"] = made.slices;
    found["slice_columns"] = made.slice_columns;
    return found;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    using WithoutGil = py::call_guard<py::gil_scoped_release>;
    m.doc() = "CUDA kernels on raw pointers; see sadkernels.native for their launchers.";
    bind_params(m);
    m.def("architectures", &architectures,
          "Returns the targets of this build, such as sm_90 (machine code) or compute_90 (PTX).");
    m.def("runtime_version", &runtime_version, "Returns the CUDA version of the linked runtime, 13000 for 13.0.");
    m.def("driver_version", &driver_version,
          "Returns the newest CUDA version that the driver supports, 0 without a driver.");
    m.def("device_count", &device_count, "Returns the number of GPUs that the driver shows, 0 without a driver.");
    m.def("emulated", [] { return is_emulated; }, "Returns whether this build runs the kernels on the host, for tests.");
#if defined(SAD_EMULATED)
    m.def(
        "set_emulated_gpu",
        [](int sms, int arch, std::int64_t l2_bytes, std::int64_t block_shared_bytes, std::int64_t sm_shared_bytes) {
            emulated_gpu() = {sms, arch, l2_bytes, block_shared_bytes, sm_shared_bytes, 64};
        },
        py::kw_only(), py::arg("sms"), py::arg("arch"), py::arg("l2_bytes"), py::arg("block_shared_bytes"),
        py::arg("sm_shared_bytes"), "Sets the GPU properties that later launches are planned for.");
#endif
    m.def("plan", &plan, py::kw_only(), py::arg("sms"), py::arg("arch"), py::arg("l2_bytes"), py::arg("block_shared_bytes"),
          py::arg("sm_shared_bytes"), py::arg("rows"), py::arg("vocab"), py::arg("element_bytes"), py::arg("lean"),
          "Returns the launch plan of a call as a dict; see launch_plan.h.");
    m.def("span_kl_scratch_bytes", &span_kl_scratch_bytes, WithoutGil(), py::arg("params"), py::arg("device"));
    m.def("span_kl", &bind_span_kl, WithoutGil(), py::arg("params"), py::arg("scratch"), py::arg("device"),
          py::arg("stream"));
    m.def("topk_span_kl_scratch_bytes", &topk_span_kl_scratch_bytes, py::arg("params"));
    m.def("topk_span_kl", &bind_topk_span_kl, WithoutGil(), py::arg("params"), py::arg("scratch"), py::arg("device"),
          py::arg("stream"));
    m.def("scale_rows", &bind_scale_rows, WithoutGil(), py::kw_only(), py::arg("rows"), py::arg("columns"), py::arg("grad"),
          py::arg("kinds"), py::arg("factor"), py::arg("device"), py::arg("stream"));
    m.def("span_ids_from_offsets", &bind_span_ids, WithoutGil(), py::arg("params"), py::arg("device"), py::arg("stream"));
}
