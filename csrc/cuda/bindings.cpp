// The Python names of the CUDA kernels. Arguments are addresses and sizes: this file neither includes nor links PyTorch. No
// function needs a GPU or a driver until a kernel is launched.
#include <map>
#include <numeric>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "kernels.h"
#include "launch_plan.h"
#include "occupancy.h"
#include "params_binding.h"
#include "runtime.h"

#if !defined(SAD_CUDA_ARCHS)
#define SAD_CUDA_ARCHS ""
#endif

using namespace sad;
using namespace sad::cuda;

namespace {

Stream as_stream(Address address) { return reinterpret_cast<Stream>(address); }

void bind_span_kl(const SpanKlParams& params, Address scratch, int device, Address stream, const PlanChoice& choice) {
    span_kl(params, as_pointer<void>(scratch), device, as_stream(stream), choice);
}

PlanChoice plan_choice(const std::optional<std::string>& strategy, int cluster, double share, int waves) {
    const std::map<std::string, Strategy> names{{"resident", Strategy::resident}, {"streamed", Strategy::streamed}};
    PlanChoice choice{{}, cluster, share, waves};
    if (strategy) choice.strategy = names.at(*strategy);
    return choice;
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

// Returns the launch plan for rows of one dtype on both sides, on a GPU with these properties. The model of `occupancy.h`
// replaces the queries of the runtime.
py::dict plan(int arch, std::int64_t l2_bytes, std::int64_t block_shared_bytes, std::int64_t sm_shared_bytes,
              const std::vector<int>& gpc_sms, int sm_threads, int ptx_version, std::int64_t rows, std::int64_t vocab,
              int element_bytes, bool lean, const PlanChoice& choice) {
    const int sms = std::accumulate(gpc_sms.begin(), gpc_sms.end(), 0);
    const Gpu gpu{sms, arch, l2_bytes, block_shared_bytes, sm_shared_bytes, 1024};
    const auto model = [&](int registers) {
        const OccupancyModel of{gpc_sms, sm_shared_bytes, sm_threads, registers, arch >= 90 && ptx_version >= 90};
        return [of](const LaunchShape& shape) {
            return of.blocks_at_once(shape.threads, static_cast<std::int64_t>(shape.shared_bytes), shape.cluster);
        };
    };
    const int registers = lean ? 64 : 128;
    const LaunchPlan made = plan_rows(gpu, {rows, vocab, 16 / element_bytes, 2 * element_bytes, true, true, lean},
                                      {model(registers), model(registers), model(128)}, choice);
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
    py::class_<PlanChoice>(m, "PlanChoice", py::module_local())
        .def(py::init(&plan_choice), py::kw_only(), py::arg("strategy") = py::none(), py::arg("cluster") = 1,
             py::arg("share") = 1.0, py::arg("waves") = 1);
    const auto choice = py::arg_v("choice", PlanChoice{}, "PlanChoice()");
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
        [](int arch, std::int64_t l2_bytes, std::int64_t block_shared_bytes, std::int64_t sm_shared_bytes,
           const std::vector<int>& gpc_sms, int code_arch, int ptx_version) {
            const int sms = std::accumulate(gpc_sms.begin(), gpc_sms.end(), 0);
            const Gpu gpu{sms, arch, l2_bytes, block_shared_bytes, sm_shared_bytes, 64};
            emulated_gpu() = {gpu, gpc_sms, code_arch, ptx_version};
        },
        py::kw_only(), py::arg("arch"), py::arg("l2_bytes"), py::arg("block_shared_bytes"), py::arg("sm_shared_bytes"),
        py::arg("gpc_sms"), py::arg("code_arch"), py::arg("ptx_version"),
        "Sets the GPU that later launches are planned for, the architecture that the kernels behave as if compiled for, and "
        "the architecture that the runtime reports for them.");
    m.def(
        "set_launcher",
        [](std::uintptr_t launcher) { emulation::launcher = reinterpret_cast<emulation::Launcher>(launcher); },
        "Sets the address of a `Launcher` that runs later launches, or 0 for the emulation. See emulation.h.");
#endif
    m.def("plan", &plan, py::kw_only(), py::arg("arch"), py::arg("l2_bytes"), py::arg("block_shared_bytes"),
          py::arg("sm_shared_bytes"), py::arg("gpc_sms"), py::arg("sm_threads"), py::arg("ptx_version"), py::arg("rows"),
          py::arg("vocab"), py::arg("element_bytes"), py::arg("lean"), choice,
          "Returns the launch plan of a call as a dict; see launch_plan.h and occupancy.h.");
    m.def("span_kl_scratch_bytes", &span_kl_scratch_bytes, WithoutGil(), py::arg("params"), py::arg("device"), choice);
    m.def("span_kl", &bind_span_kl, WithoutGil(), py::arg("params"), py::arg("scratch"), py::arg("device"),
          py::arg("stream"), choice);
    m.def("topk_span_kl_scratch_bytes", &topk_span_kl_scratch_bytes, py::arg("params"));
    m.def("topk_span_kl", &bind_topk_span_kl, WithoutGil(), py::arg("params"), py::arg("scratch"), py::arg("device"),
          py::arg("stream"));
    m.def("scale_rows", &bind_scale_rows, WithoutGil(), py::kw_only(), py::arg("rows"), py::arg("columns"), py::arg("grad"),
          py::arg("kinds"), py::arg("factor"), py::arg("device"), py::arg("stream"));
    m.def("span_ids_from_offsets", &bind_span_ids, WithoutGil(), py::arg("params"), py::arg("device"), py::arg("stream"));
}
