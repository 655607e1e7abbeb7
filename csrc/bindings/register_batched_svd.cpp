#include <algorithm>
#include <memory>

#include "bindings/register.hpp"
#include "bindings/tensor_ref.hpp"
#include "cpu/batched_svd.hpp"

namespace aniso {
namespace {

void batched_svd_cpu(const py::object& x, const py::object& values, const py::object& left,
                     const py::object& right, const py::object& bounds, const py::object& checks,
                     const py::object& methods, bool high, int threads, const std::string& isa) {
  const TensorRef x_ref(x, "x"), values_ref(values, "values"), bounds_ref(bounds, "bounds");
  const TensorRef checks_ref(checks, "checks"), methods_ref(methods, "methods");
  const bool vectors = !left.is_none() && !right.is_none();
  const TensorRef left_ref(vectors ? left : x, "left"), right_ref(vectors ? right : x, "right");
  for (const TensorRef* ref :
       {&x_ref, &values_ref, &bounds_ref, &checks_ref, &methods_ref, &left_ref, &right_ref}) {
    if (ref->on_cuda()) throw py::value_error("the matrices and the results must lie on the CPU");
  }
  const MatricesView in = x_ref.matrices();
  const int64_t p = std::min(in.m, in.n), k = values_ref.size(1);
  if (p < 1 || k < 1 || k > p) throw py::value_error("values must hold 1 to min(m, n) per matrix");
  if (p > cpu::BATCHED_SVD_MAX_SIDE || in.m * in.n > cpu::BATCHED_SVD_MAX_SIZE) {
    throw py::value_error("the matrices are too large");
  }
  SvdView out{};
  out.k = k;
  out.values = values_ref.doubles(in.b * k);
  out.bounds = bounds_ref.doubles(2 * in.b * k);
  out.checks = checks_ref.doubles(2 * in.b);
  out.methods = methods_ref.bytes_of(in.b);
  out.wide = in.dtype == DType::f64;
  if (vectors) {
    const int64_t left_size = in.b * in.m * k, right_size = in.b * k * in.n;
    out.left = out.wide ? static_cast<void*>(left_ref.doubles(left_size))
                        : static_cast<void*>(left_ref.floats(left_size));
    out.right = out.wide ? static_cast<void*>(right_ref.doubles(right_size))
                         : static_cast<void*>(right_ref.floats(right_size));
  }
  const cpu::Isa chosen = cpu::isa_named(isa);
  py::gil_scoped_release released;
  cpu::batched_svd(in, out, high, threads, chosen);
}

}  // namespace

void register_batched_svd(py::module_& m) {
  m.attr("batched_svd_max_side") = cpu::BATCHED_SVD_MAX_SIDE;
  m.attr("batched_svd_max_size") = cpu::BATCHED_SVD_MAX_SIZE;
  m.def("batched_svd_cpu", &batched_svd_cpu, py::arg("x"), py::arg("values"),
        py::arg("left").none(true), py::arg("right").none(true), py::arg("bounds"),
        py::arg("checks"), py::arg("methods"), py::arg("high"), py::arg("threads"), py::arg("isa"));
}

}  // namespace aniso
