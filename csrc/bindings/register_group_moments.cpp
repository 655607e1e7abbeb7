#include <optional>

#include "bindings/register.hpp"
#include "bindings/tensor_ref.hpp"
#include "cpu/group_moments.hpp"
#ifdef ANISO_HAS_CUDA
#include "bindings/cuda_call.hpp"
#include "cuda/group_moments.hpp"
#endif

namespace aniso {
namespace {

/// The arguments of one call, checked; keeps every tensor alive while the kernel runs.
class Call {
 public:
  Call(const py::object& x, const py::tuple& runs, const py::tuple& outputs, double scale)
      : x_(x, "x"),
        order_(runs[0], "order"),
        begin_(runs[1], "begin"),
        end_(runs[2], "end"),
        slot_(runs[3], "slot"),
        counts_(outputs[0], "counts"),
        square_norms_(outputs[1], "square_norms"),
        sums_(given(outputs[2], "sums")),
        unit_sums_(given(outputs[3], "unit_sums")),
        products_(given(outputs[4], "products")),
        totals_(given(outputs[5], "totals")),
        rows(x_.rows()),
        runs{order_.indices(), order_.size(0),  begin_.indices(),
             end_.indices(),   slot_.indices(), slot_.size(0)},
        out{counts_.integers(groups()),
            square_norms_.doubles(groups()),
            doubles(sums_, groups() * rows.d),
            doubles(unit_sums_, groups() * rows.d),
            doubles(products_, groups() * 3),
            doubles(totals_, writers() * rows.d),
            writers(),
            scale} {
    if (begin_.size(0) != slot_.size(0) || end_.size(0) != slot_.size(0)) {
      throw py::value_error("begin, end and slot must be of one length");
    }
    if (products_.has_value() != (writers() > 0) || (products_ && (sums_ || unit_sums_))) {
      throw py::value_error("products and totals are taken together, without sums and unit_sums");
    }
  }

  /// Refuses tensors that do not all lie where the kernel runs.
  void require_device(bool cuda) const {
    for (const TensorRef* ref :
         {&x_, &order_, &begin_, &end_, &slot_, &counts_, &square_norms_, pointer(sums_),
          pointer(unit_sums_), pointer(products_), pointer(totals_)}) {
      if (ref->on_cuda() != cuda || (cuda && ref->device_id() != x_.device_id())) {
        throw py::value_error("x, the runs and the accumulators must lie on one device");
      }
    }
  }

 private:
  static std::optional<TensorRef> given(const py::object& array, const char* name) {
    return array.is_none() ? std::nullopt : std::optional<TensorRef>(std::in_place, array, name);
  }
  static double* doubles(const std::optional<TensorRef>& ref, int64_t count) {
    return ref ? ref->doubles(count) : nullptr;
  }
  const TensorRef* pointer(const std::optional<TensorRef>& ref) const { return ref ? &*ref : &x_; }
  int64_t groups() const { return counts_.size(0); }
  int64_t writers() const { return totals_ ? totals_->size(0) : 0; }

  TensorRef x_, order_, begin_, end_, slot_, counts_, square_norms_;
  std::optional<TensorRef> sums_, unit_sums_, products_, totals_;

 public:
  const RowsView rows;
  const RunsView runs;
  const GroupMomentsView out;
};

void group_moments_cpu(const py::object& x, const py::tuple& runs, const py::tuple& outputs,
                       double scale, int threads, const std::string& isa) {
  const Call call(x, runs, outputs, scale);
  call.require_device(false);
  const cpu::Isa chosen = cpu::isa_named(isa);
  py::gil_scoped_release released;
  cpu::group_moments(call.rows, call.runs, call.out, threads, chosen);
}

#ifdef ANISO_HAS_CUDA
void group_moments_cuda(const py::object& x, const py::tuple& runs, const py::tuple& outputs,
                        double scale, const py::object& workspace, uintptr_t stream) {
  const Call call(x, runs, outputs, scale);
  call.require_device(true);
  const TensorRef space(workspace, "workspace");
  if (!space.on_cuda() || space.bytes() < cuda::group_moments_workspace_bytes(call.runs.rows)) {
    throw py::value_error("workspace is smaller than group_moments_workspace_bytes asks for");
  }
  check_cuda(cuda::group_moments(call.rows, call.runs, call.out, space.data(),
                                 reinterpret_cast<cudaStream_t>(stream)),
             "group_moments");
}
#endif

}  // namespace

void register_group_moments(py::module_& m) {
  m.def("group_moments_cpu", &group_moments_cpu, py::arg("x"), py::arg("runs"), py::arg("outputs"),
        py::arg("scale"), py::arg("threads"), py::arg("isa"));
#ifdef ANISO_HAS_CUDA
  m.def("group_moments_cuda", &group_moments_cuda, py::arg("x"), py::arg("runs"),
        py::arg("outputs"), py::arg("scale"), py::arg("workspace"), py::arg("stream"));
  m.def("group_moments_workspace_bytes", &cuda::group_moments_workspace_bytes, py::arg("rows"));
#endif
}

}  // namespace aniso
