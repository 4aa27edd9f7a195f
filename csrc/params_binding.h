// The Python side of `SpanKlParams`, the same for every compiled backend: addresses, sizes and numbers by name.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <utility>

#include "span_kl_params.h"

namespace sad {

namespace py = pybind11;
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

// Defines `name` in m: it calls run(params, own...), `names` being the Python names of the backend's own arguments.
template <typename Result, typename... Own, typename... Names>
void define_with_params(py::module_& m, const char* name, Result (*run)(const SpanKlParams&, Own...),
                        const Names&... names) {
    m.def(
        name,
        [run](std::int64_t rows, std::int64_t vocab, std::int64_t student_columns, const RowsTuple& student,
              const RowsTuple& teacher, const RowsTuple& grad, std::pair<float, float> scales, std::pair<float, float> caps,
              int divergence, float beta, float temperature, Address kinds, Address weights, Address lse_given,
              Address state_given, Address value, Address state, Address entropies, Address argmax, Own... own) {
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
            const py::gil_scoped_release released;
            return run(params, own...);
        },
        py::kw_only(), py::arg("rows"), py::arg("vocab"), py::arg("student_columns"), py::arg("student"), py::arg("teacher"),
        py::arg("grad"), py::arg("scales"), py::arg("caps"), py::arg("divergence"), py::arg("beta"), py::arg("temperature"),
        py::arg("kinds"), py::arg("weights"), py::arg("lse_given"), py::arg("state_given"), py::arg("value"),
        py::arg("state"), py::arg("entropies"), py::arg("argmax"), names...);
}

}  // namespace sad
