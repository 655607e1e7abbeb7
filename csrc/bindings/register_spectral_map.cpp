#include <algorithm>
#include <initializer_list>
#include <optional>

#include "bindings/register.hpp"
#include "bindings/tensor_ref.hpp"
#include "cpu/spectral_map.hpp"

namespace aniso {
namespace {

/// An argument that may be None.
std::optional<TensorRef> given(const py::object& array, const char* name) {
  if (array.is_none()) return std::nullopt;
  return TensorRef(array, name);
}

const uint8_t* bools(const std::optional<TensorRef>& ref, int64_t count) {
  if (!ref) return nullptr;
  const MaskView mask = ref->mask(count);
  if (count > 1 && mask.stride != 1) throw py::value_error("masks must be contiguous");
  return mask.data;
}

/// Matrices, mask and factors of one call, checked; keeps every tensor alive while a kernel runs.
class Call {
 public:
  Call(const py::object& x, const py::object& mask, const py::tuple& factors)
      : x_(x, "x"),
        mask_(given(mask, "mask")),
        u_(factors[0], "u"),
        s_(factors[1], "s"),
        vh_(factors[2], "vh"),
        in(x_.matrices()) {
    const int64_t k = std::min(in.m, in.n);
    rows = bools(mask_, in.b * in.m);
    out = {factor(u_, in.b * in.m * k), s_.doubles(in.b * k), factor(vh_, in.b * k * in.n), k};
    require_cpu({&x_, &u_, &s_, &vh_, mask_ ? &*mask_ : &x_});
  }

  static void require_cpu(std::initializer_list<const TensorRef*> refs) {
    for (const TensorRef* ref : refs) {
      if (ref->on_cuda()) throw py::value_error("the arguments must lie on the CPU");
    }
  }

  /// `ref` as matrices like x, to write.
  void* like_x(const TensorRef& ref) const {
    const MatricesView shape = ref.matrices();
    if (shape.dtype != in.dtype || shape.b != in.b || shape.m != in.m || shape.n != in.n) {
      throw py::value_error("the result must have the shape and dtype of x");
    }
    ref.bytes();  // contiguous
    require_cpu({&ref});
    return ref.data();
  }

 private:
  void* factor(const TensorRef& ref, int64_t count) const {
    return in.dtype == DType::f64 ? static_cast<void*>(ref.doubles(count))
                                  : static_cast<void*>(ref.floats(count));
  }

  TensorRef x_;
  std::optional<TensorRef> mask_;
  TensorRef u_, s_, vh_;

 public:
  const MatricesView in;
  const uint8_t* rows = nullptr;
  cpu::SpectralFactors out{};
};

void spectral_factors_cpu(const py::object& x, const py::object& mask, const py::tuple& factors,
                          const py::object& methods, int threads, const std::string& isa) {
  const Call call(x, mask, factors);
  const TensorRef methods_ref(methods, "methods");
  Call::require_cpu({&methods_ref});
  int8_t* found = methods_ref.bytes_of(call.in.b);
  const cpu::Isa chosen = cpu::isa_named(isa);
  py::gil_scoped_release released;
  cpu::spectral_factors(call.in, call.rows, call.out, found, threads, chosen);
}

void spectral_map_cpu(const py::object& x, const py::object& mask, const py::object& defined,
                      const py::tuple& factors, const py::object& values, const py::object& out,
                      int threads, const std::string& isa) {
  const Call call(x, mask, factors);
  const std::optional<TensorRef> defined_ref = given(defined, "defined");
  const TensorRef values_ref(values, "values"), out_ref(out, "out");
  Call::require_cpu({&values_ref, defined_ref ? &*defined_ref : &values_ref});
  const cpu::SpectralMapView view{call.in,
                                  call.rows,
                                  bools(defined_ref, call.in.b),
                                  call.out,
                                  values_ref.doubles(call.in.b * call.out.k),
                                  call.like_x(out_ref)};
  const cpu::Isa chosen = cpu::isa_named(isa);
  py::gil_scoped_release released;
  cpu::spectral_map(view, threads, chosen);
}

void spectral_map_backward_cpu(const py::object& grad, const py::object& mask,
                               const py::object& defined, const py::tuple& factors,
                               const py::object& values, const py::tuple& slopes,
                               const py::object& dx, const py::object& dvalues, int threads,
                               const std::string& isa) {
  const Call call(grad, mask, factors);
  const std::optional<TensorRef> defined_ref = given(defined, "defined"), dx_ref = given(dx, "dx");
  const std::optional<TensorRef> derivative = given(slopes[0], "derivative"),
                                 curvature = given(slopes[1], "curvature"),
                                 at_zero = given(slopes[2], "at_zero"),
                                 top = given(slopes[3], "top");
  const TensorRef values_ref(values, "values"), dvalues_ref(dvalues, "dvalues");
  for (const auto* ref : {&defined_ref, &derivative, &curvature, &at_zero, &top}) {
    if (*ref) Call::require_cpu({&**ref});
  }
  Call::require_cpu({&values_ref, &dvalues_ref});
  if (dx_ref && !(derivative && curvature && at_zero)) {
    throw py::value_error("dx needs derivative, curvature and at_zero");
  }
  const int64_t vectors = call.in.b * call.out.k;
  const auto doubles = [](const std::optional<TensorRef>& ref, int64_t count) -> const double* {
    return ref ? ref->doubles(count) : nullptr;
  };
  const cpu::SpectralMapView view{call.in,
                                  call.rows,
                                  bools(defined_ref, call.in.b),
                                  call.out,
                                  values_ref.doubles(vectors),
                                  dx_ref ? call.like_x(*dx_ref) : nullptr};
  const cpu::SpectralGradient gradient{doubles(derivative, vectors), doubles(curvature, vectors),
                                       doubles(at_zero, call.in.b), doubles(top, vectors),
                                       dvalues_ref.doubles(vectors)};
  const cpu::Isa chosen = cpu::isa_named(isa);
  py::gil_scoped_release released;
  cpu::spectral_map_backward(view, gradient, threads, chosen);
}

}  // namespace

void register_spectral_map(py::module_& m) {
  m.def("spectral_factors_cpu", &spectral_factors_cpu, py::arg("x"), py::arg("mask").none(true),
        py::arg("factors"), py::arg("methods"), py::arg("threads"), py::arg("isa"));
  m.def("spectral_map_cpu", &spectral_map_cpu, py::arg("x"), py::arg("mask").none(true),
        py::arg("defined").none(true), py::arg("factors"), py::arg("values"), py::arg("out"),
        py::arg("threads"), py::arg("isa"));
  m.def("spectral_map_backward_cpu", &spectral_map_backward_cpu, py::arg("grad"),
        py::arg("mask").none(true), py::arg("defined").none(true), py::arg("factors"),
        py::arg("values"), py::arg("slopes"), py::arg("dx").none(true), py::arg("dvalues"),
        py::arg("threads"), py::arg("isa"));
}

}  // namespace aniso
