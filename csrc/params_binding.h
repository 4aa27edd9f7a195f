// Binds the structs of `params.h` to Python. Each class has a constructor that takes the fields by name:
//
//   SpanKlParams(rows=4, vocab=8, ..., grad=(address, dtype, inner, outer_stride, inner_stride), value=address)
//
// Python passes a pointer as an address, `Rows` as a tuple, and leaves out a pointer that is null.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <type_traits>

#include "params.h"

namespace sad {

namespace py = pybind11;
using Address = std::uintptr_t;

template <typename T>
T* as_pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

// How Python passes a value of type T: the type that pybind11 converts, and the conversion from it.
template <typename T, typename = void>
struct FromPython {
    using type = T;
    static T convert(T value) { return value; }
};
template <typename T>
struct FromPython<T, std::enable_if_t<std::is_enum_v<T>>> {
    using type = int;
    static T convert(int value) { return static_cast<T>(value); }
};
template <typename T>
struct FromPython<T*> {
    using type = Address;
    static T* convert(Address value) { return as_pointer<T>(value); }
};
template <typename T>
struct FromPython<Rows<T>> {
    using type = std::tuple<Address, int, std::int64_t, std::int64_t, std::int64_t>;
    static Rows<T> convert(const type& x) {
        return {as_pointer<T>(std::get<0>(x)), static_cast<Dtype>(std::get<1>(x)), std::get<2>(x), std::get<3>(x),
                std::get<4>(x)};
    }
};
template <>
struct FromPython<Logits> {
    using type = std::tuple<FromPython<Rows<const void>>::type, float, float>;
    static Logits convert(const type& x) {
        return {FromPython<Rows<const void>>::convert(std::get<0>(x)), std::get<1>(x), std::get<2>(x)};
    }
};

// A field of `Params` and its Python name.
template <typename Params, typename T>
struct Field {
    const char* name;
    T Params::* member;

    auto argument() const {
        if constexpr (std::is_pointer_v<T>) {
            return py::arg_v(name, Address{0});  // null unless given
        } else {
            return py::arg(name);
        }
    }
};
template <typename Params, typename T>
Field<Params, T> field(const char* name, T Params::* member) {
    return {name, member};
}

// Defines the class `name` with a constructor that takes `fields`. It is local to the module, because both extensions define
// the same structs.
template <typename Params, typename... T>
void bind_struct(py::module_& m, const char* name, const Field<Params, T>&... fields) {
    const auto construct = [fields...](const typename FromPython<T>::type&... values) {
        Params params{};
        ((params.*fields.member = FromPython<T>::convert(values)), ...);
        return params;
    };
    py::class_<Params>(m, name, py::module_local()).def(py::init(construct), py::kw_only(), fields.argument()...);
}

// clang-format off
inline void bind_params(py::module_& m) {
    bind_struct(m, "SpanKlParams",
                field("rows", &SpanKlParams::rows),
                field("vocab", &SpanKlParams::vocab),
                field("student_columns", &SpanKlParams::student_columns),
                field("student", &SpanKlParams::student),
                field("teacher", &SpanKlParams::teacher),
                field("grad", &SpanKlParams::grad),
                field("divergence", &SpanKlParams::divergence),
                field("beta", &SpanKlParams::beta),
                field("temperature", &SpanKlParams::temperature),
                field("kinds", &SpanKlParams::kinds),
                field("weights", &SpanKlParams::weights),
                field("lse_given", &SpanKlParams::lse_given),
                field("state_given", &SpanKlParams::state_given),
                field("value", &SpanKlParams::value),
                field("state", &SpanKlParams::state),
                field("entropies", &SpanKlParams::entropies),
                field("argmax", &SpanKlParams::argmax));
    bind_struct(m, "TopkSpanKlParams",
                field("base", &TopkSpanKlParams::base),
                field("k", &TopkSpanKlParams::k),
                field("columns", &TopkSpanKlParams::columns),
                field("log_p", &TopkSpanKlParams::log_p),
                field("log_tail", &TopkSpanKlParams::log_tail),
                field("labels", &TopkSpanKlParams::labels),
                field("alpha", &TopkSpanKlParams::alpha));
    bind_struct(m, "SpanIdsParams",
                field("batch", &SpanIdsParams::batch),
                field("tokens", &SpanIdsParams::tokens),
                field("offsets", &SpanIdsParams::offsets),
                field("starts", &SpanIdsParams::starts),
                field("ends", &SpanIdsParams::ends),
                field("kinds", &SpanIdsParams::kinds),
                field("row_splits", &SpanIdsParams::row_splits),
                field("ids", &SpanIdsParams::ids),
                field("m_r", &SpanIdsParams::m_r),
                field("m_a", &SpanIdsParams::m_a));
}
// clang-format on

}  // namespace sad
