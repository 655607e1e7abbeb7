#include "bindings/register.hpp"
#include "bindings/tensor_ref.hpp"
#include "cpu/gram.hpp"
#include "cpu/isa.hpp"

namespace aniso {
namespace {

void gram_cpu(const py::object& x, const py::object& mask, const py::object& pilot,
              const py::object& raw, const py::object& unit, const py::object& totals,
              const py::object& noise, int threads, const std::string& isa) {
  const TensorRef x_ref(x, "x"), mask_ref(mask.is_none() ? x : mask, "mask");
  const TensorRef raw_ref(raw.is_none() ? x : raw, "raw"),
      unit_ref(unit.is_none() ? x : unit, "unit");
  const TensorRef pilot_ref(pilot, "pilot");
  const TensorRef totals_ref(totals, "totals"), noise_ref(noise, "noise");
  for (const TensorRef* ref :
       {&x_ref, &mask_ref, &pilot_ref, &raw_ref, &unit_ref, &totals_ref, &noise_ref}) {
    if (ref->on_cuda()) throw py::value_error("x, mask and the sums must lie on the CPU");
  }
  const RowsView rows = x_ref.rows();
  const bool amx = isa == "amx";
  if (amx && rows.dtype == DType::f64) throw py::value_error("AMX takes no float64 rows");
  if (amx && !cpu::has_amx()) throw py::value_error("this processor or build has no amx");
  const cpu::Isa chosen = amx ? cpu::best_isa() : cpu::isa_named(isa);
  const MaskView kept = mask.is_none() ? MaskView{nullptr, 0} : mask_ref.mask(rows.n);
  double* raw_sums = raw.is_none() ? nullptr : raw_ref.doubles(rows.d * rows.d);
  double* unit_sums = unit.is_none() ? nullptr : unit_ref.doubles(rows.d * rows.d);
  const double* pilots = pilot_ref.doubles(2 * rows.d);
  double* total_sums = totals_ref.doubles(2 * rows.d);
  double* noise_sums = noise_ref.doubles(2);
  py::gil_scoped_release released;
  if (amx) {
    cpu::gram(rows, kept, pilots, raw_sums, unit_sums, total_sums, noise_sums, threads);
  } else {
    cpu::gram_vector(rows, kept, pilots, raw_sums, unit_sums, total_sums, threads, chosen);
  }
}

}  // namespace

void register_gram(py::module_& m) {
  m.attr("has_amx") = cpu::has_amx();
  m.def("gram_cpu", &gram_cpu, py::arg("x"), py::arg("mask").none(true), py::arg("pilot"),
        py::arg("raw").none(true), py::arg("unit").none(true), py::arg("totals"), py::arg("noise"),
        py::arg("threads"), py::arg("isa"));
}

}  // namespace aniso
