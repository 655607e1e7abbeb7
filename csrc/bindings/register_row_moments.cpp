#include "bindings/register.hpp"
#include "bindings/tensor_ref.hpp"
#include "cpu/row_moments.hpp"
#ifdef ANISO_HAS_CUDA
#include "bindings/cuda_call.hpp"
#include "cuda/row_moments.hpp"
#endif

namespace aniso {
namespace {

/// The arguments of one call, checked; keeps every tensor alive while the kernel runs.
class Call {
 public:
  Call(const py::object& x, const py::object& mask, const py::object& sums,
       const py::object& norm_sums, const py::object& norm_range, const py::object& abs_max,
       const py::object& counts)
      : x_(x, "x"),
        mask_(mask.is_none() ? x_ : TensorRef(mask, "mask")),
        sums_(sums, "sums"),
        norm_sums_(norm_sums, "norm_sums"),
        norm_range_(norm_range, "norm_range"),
        abs_max_(abs_max, "abs_max"),
        counts_(counts, "counts"),
        rows(x_.rows()),
        kept(mask.is_none() ? MaskView{nullptr, 0} : mask_.mask(rows.n)),
        out{sums_.doubles(4 * rows.d), norm_sums_.doubles(3), norm_range_.doubles(2),
            abs_max_.doubles(rows.d), counts_.integers(4)} {}

  /// Refuses tensors that do not all lie where the kernel runs.
  void require_device(bool cuda) const {
    for (const TensorRef* ref :
         {&x_, &mask_, &sums_, &norm_sums_, &norm_range_, &abs_max_, &counts_}) {
      if (ref->on_cuda() != cuda || (cuda && ref->device_id() != x_.device_id())) {
        throw py::value_error("x, mask and the accumulators must lie on one device");
      }
    }
  }

 private:
  TensorRef x_, mask_, sums_, norm_sums_, norm_range_, abs_max_, counts_;

 public:
  const RowsView rows;
  const MaskView kept;
  const RowMomentsView out;
};

void row_moments_cpu(const py::object& x, const py::object& mask, const py::object& sums,
                     const py::object& norm_sums, const py::object& norm_range,
                     const py::object& abs_max, const py::object& counts, int threads,
                     const std::string& isa) {
  const Call call(x, mask, sums, norm_sums, norm_range, abs_max, counts);
  call.require_device(false);
  const cpu::Isa chosen = cpu::isa_named(isa);
  py::gil_scoped_release released;
  cpu::row_moments(call.rows, call.kept, call.out, threads, chosen);
}

#ifdef ANISO_HAS_CUDA
void row_moments_cuda(const py::object& x, const py::object& mask, const py::object& sums,
                      const py::object& norm_sums, const py::object& norm_range,
                      const py::object& abs_max, const py::object& counts,
                      const py::object& workspace, uintptr_t stream) {
  const Call call(x, mask, sums, norm_sums, norm_range, abs_max, counts);
  call.require_device(true);
  const TensorRef space(workspace, "workspace");
  if (!space.on_cuda() || space.bytes() < cuda::row_moments_workspace_bytes(call.rows)) {
    throw py::value_error("workspace is smaller than row_moments_workspace_bytes asks for");
  }
  check_cuda(cuda::row_moments(call.rows, call.kept, call.out, space.data(),
                               reinterpret_cast<cudaStream_t>(stream)),
             "row_moments");
}

int64_t row_moments_workspace_bytes(const py::object& x) {
  return cuda::row_moments_workspace_bytes(TensorRef(x, "x").rows());
}
#endif

}  // namespace

void register_row_moments(py::module_& m) {
  m.def("row_moments_cpu", &row_moments_cpu, py::arg("x"), py::arg("mask").none(true),
        py::arg("sums"), py::arg("norm_sums"), py::arg("norm_range"), py::arg("abs_max"),
        py::arg("counts"), py::arg("threads"), py::arg("isa"));
#ifdef ANISO_HAS_CUDA
  m.def("row_moments_cuda", &row_moments_cuda, py::arg("x"), py::arg("mask").none(true),
        py::arg("sums"), py::arg("norm_sums"), py::arg("norm_range"), py::arg("abs_max"),
        py::arg("counts"), py::arg("workspace"), py::arg("stream"));
  m.def("row_moments_workspace_bytes", &row_moments_workspace_bytes, py::arg("x"));
#endif
}

}  // namespace aniso
