#include "bindings/register.hpp"
#include "bindings/tensor_ref.hpp"
#include "cpu/isa.hpp"
#include "cpu/pair_histogram.hpp"

namespace aniso {
namespace {

void pair_histogram_cpu(const py::object& a, const py::object& b, double low, double high,
                        const py::object& counts, const py::object& extremes, int threads,
                        const std::string& isa) {
  const TensorRef a_ref(a, "a"), b_ref(b.is_none() ? a : b, "b");
  const TensorRef counts_ref(counts, "counts"), extremes_ref(extremes, "extremes");
  for (const TensorRef* ref : {&a_ref, &b_ref, &counts_ref, &extremes_ref}) {
    if (ref->on_cuda()) throw py::value_error("the rows and the counts must lie on the CPU");
  }
  const RowsView rows = a_ref.rows(), partners = b_ref.rows();
  if (rows.dtype != partners.dtype || rows.d != partners.d) {
    throw py::value_error("pair_histogram_cpu takes two sets of rows of one dtype and width");
  }
  const bool amx = isa == "amx";
  if (amx && rows.dtype == DType::f64) throw py::value_error("AMX takes no float64 rows");
  if (amx && !cpu::has_amx()) throw py::value_error("this processor or build has no amx");
  if (amx && rows.d > cpu::PAIR_HISTOGRAM_MAX_DIM) throw py::value_error("rows are too wide");
  const cpu::Isa chosen = amx ? cpu::best_isa() : cpu::isa_named(isa);
  if (!(low < high)) throw py::value_error("low must lie below high");
  const int64_t bins = counts_ref.size(0) - 2;
  if (bins < 1 || bins > 65536) throw py::value_error("counts must hold 1 to 65,536 bins and two");
  const cpu::BinsView out{low, high, bins, counts_ref.integers(bins + 2), extremes_ref.doubles(2)};
  py::gil_scoped_release released;
  const RowsView* others = b.is_none() ? nullptr : &partners;
  if (amx) {
    cpu::pair_histogram(rows, others, out, threads);
  } else {
    cpu::pair_histogram_vector(rows, others, out, threads, chosen);
  }
}

}  // namespace

void register_pair_histogram(py::module_& m) {
  m.attr("pair_histogram_max_dim") = cpu::PAIR_HISTOGRAM_MAX_DIM;
  m.def("pair_histogram_cpu", &pair_histogram_cpu, py::arg("a"), py::arg("b").none(true),
        py::arg("low"), py::arg("high"), py::arg("counts"), py::arg("extremes"), py::arg("threads"),
        py::arg("isa"));
}

}  // namespace aniso
