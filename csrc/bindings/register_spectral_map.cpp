#include "bindings/register.hpp"
#include "bindings/tensor_ref.hpp"
#include "cpu/spectral_map.hpp"

namespace aniso {
namespace {

void spectral_inner_cpu(const py::object& p, const py::object& s, const py::object& values,
                        const py::object& slopes, const py::object& at_zero,
                        const py::object& stretch, bool by_row, const py::object& out, int threads,
                        const std::string& isa) {
  const TensorRef p_ref(p, "p"), s_ref(s, "s"), values_ref(values, "values");
  const TensorRef slopes_ref(slopes, "slopes"), at_zero_ref(at_zero, "at_zero");
  const TensorRef stretch_ref(stretch, "stretch"), out_ref(out, "out");
  for (const TensorRef* ref :
       {&p_ref, &s_ref, &values_ref, &slopes_ref, &at_zero_ref, &stretch_ref, &out_ref}) {
    if (ref->on_cuda()) throw py::value_error("the arguments must lie on the CPU");
  }
  const MatricesView shape = p_ref.matrices();
  cpu::SpectralInnerView view{};
  view.b = shape.b;
  view.k = shape.n;
  view.wide = shape.dtype == DType::f64;
  const int64_t vectors = view.b * view.k, squares = vectors * view.k;
  view.p = view.wide ? static_cast<const void*>(p_ref.doubles(squares)) : p_ref.floats(squares);
  view.s = s_ref.doubles(vectors);
  view.values = values_ref.doubles(vectors);
  view.slopes = slopes_ref.doubles(squares);
  view.at_zero = at_zero_ref.doubles(view.b);
  view.stretch = stretch_ref.doubles(vectors);
  view.by_row = by_row;
  view.out = view.wide ? static_cast<void*>(out_ref.doubles(squares)) : out_ref.floats(squares);
  const cpu::Isa chosen = cpu::isa_named(isa);
  py::gil_scoped_release released;
  cpu::spectral_inner(view, threads, chosen);
}

}  // namespace

void register_spectral_map(py::module_& m) {
  m.def("spectral_inner_cpu", &spectral_inner_cpu, py::arg("p"), py::arg("s"), py::arg("values"),
        py::arg("slopes"), py::arg("at_zero"), py::arg("stretch"), py::arg("by_row"),
        py::arg("out"), py::arg("threads"), py::arg("isa"));
}

}  // namespace aniso
