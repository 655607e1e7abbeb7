#include <algorithm>
#include <optional>

#include "bindings/register.hpp"
#include "bindings/tensor_ref.hpp"
#include "cpu/batched_svd.hpp"
#include "cuda/batched_svd_emulated.hpp"
#include "cuda/batched_svd_limits.hpp"
#ifdef ANISO_HAS_CUDA
#include "bindings/cuda_call.hpp"
#include "cuda/batched_svd.hpp"
#endif

namespace aniso {
namespace {

/// The arguments of one call, checked; keeps every tensor alive while the kernel runs.
class Call {
 public:
  Call(const py::object& x, const py::tuple& outputs)
      : x_(x, "x"),
        values_(outputs[0], "values"),
        bounds_(outputs[3], "bounds"),
        checks_(outputs[4], "checks"),
        methods_(outputs[5], "methods"),
        in(x_.matrices()) {
    if (!outputs[1].is_none() && !outputs[2].is_none()) {
      left_.emplace(outputs[1], "left");
      right_.emplace(outputs[2], "right");
    }
    out.k = values_.size(1);
    if (short_side() < 1 || out.k < 1 || out.k > short_side()) {
      throw py::value_error("values must hold 1 to min(m, n) per matrix");
    }
    out.values = values_.doubles(in.b * out.k);
    out.bounds = bounds_.doubles(2 * in.b * out.k);
    out.checks = checks_.doubles(2 * in.b);
    out.methods = methods_.bytes_of(in.b);
    out.wide = in.dtype == DType::f64;
    if (!left_) return;
    out.left = factor(*left_, in.b * in.m * out.k);
    out.right = factor(*right_, in.b * out.k * in.n);
  }

  int64_t short_side() const { return std::min(in.m, in.n); }

  /// Refuses tensors that do not all lie where the kernel runs, and matrices it does not take.
  void require(bool cuda, int64_t side, int64_t size) const {
    for (const TensorRef* ref : {&x_, &values_, &bounds_, &checks_, &methods_,
                                 left_ ? &*left_ : &x_, right_ ? &*right_ : &x_}) {
      if (ref->on_cuda() != cuda || (cuda && ref->device_id() != x_.device_id())) {
        throw py::value_error(cuda ? "the matrices and the results must lie on one CUDA device"
                                   : "the matrices and the results must lie on the CPU");
      }
    }
    if (short_side() > side || in.m * in.n > size) {
      throw py::value_error("the matrices are too large");
    }
  }

 private:
  void* factor(const TensorRef& ref, int64_t count) const {
    return out.wide ? static_cast<void*>(ref.doubles(count))
                    : static_cast<void*>(ref.floats(count));
  }

  TensorRef x_, values_, bounds_, checks_, methods_;
  std::optional<TensorRef> left_, right_;

 public:
  const MatricesView in;
  SvdView out{};
};

void batched_svd_cpu(const py::object& x, const py::object& values, const py::object& left,
                     const py::object& right, const py::object& bounds, const py::object& checks,
                     const py::object& methods, bool high, int threads, const std::string& isa) {
  const Call call(x, py::make_tuple(values, left, right, bounds, checks, methods));
  call.require(false, cpu::BATCHED_SVD_MAX_SIDE, cpu::BATCHED_SVD_MAX_SIZE);
  const cpu::Isa chosen = cpu::isa_named(isa);
  py::gil_scoped_release released;
  cpu::batched_svd(call.in, call.out, high, threads, chosen);
}

cuda::SvdEffort effort_named(const std::string& name) {
  if (name == "gram") return cuda::SvdEffort::gram;
  if (name == "refined") return cuda::SvdEffort::refined;
  if (name == "high") return cuda::SvdEffort::high;
  throw py::value_error("effort must be gram, refined or high");
}

void batched_svd_emulated(const py::object& x, const py::tuple& outputs, const std::string& effort,
                          int threads, bool near) {
  const Call call(x, outputs);
  call.require(false, cuda::BATCHED_SVD_MAX_SIDE, cuda::BATCHED_SVD_MAX_SIZE);
  if (threads < 4 || threads > 64 || (threads & (threads - 1)) != 0) {
    throw py::value_error("threads must be 4, 8, 16, 32 or 64");
  }
  py::gil_scoped_release released;
  cuda::batched_svd_emulated(call.in, call.out, effort_named(effort), threads, near);
}

#ifdef ANISO_HAS_CUDA
int64_t batched_svd_workspace_bytes(const py::object& x, const py::tuple& outputs,
                                    const std::string& effort) {
  const Call call(x, outputs);
  const int64_t bytes = cuda::batched_svd_workspace_bytes(call.in, call.out, effort_named(effort));
  if (bytes < 0) throw std::runtime_error("batched_svd on CUDA failed: the device does not answer");
  return bytes;
}

void batched_svd_cuda(const py::object& x, const py::tuple& outputs, const std::string& effort,
                      const py::object& workspace, uintptr_t stream) {
  const Call call(x, outputs);
  call.require(true, cuda::BATCHED_SVD_MAX_SIDE, cuda::BATCHED_SVD_MAX_SIZE);
  const TensorRef space(workspace, "workspace");
  if (!space.on_cuda() ||
      space.bytes() < cuda::batched_svd_workspace_bytes(call.in, call.out, effort_named(effort))) {
    throw py::value_error("workspace is smaller than batched_svd_workspace_bytes asks for");
  }
  check_cuda(cuda::batched_svd(call.in, call.out, effort_named(effort), space.data(),
                               reinterpret_cast<cudaStream_t>(stream)),
             "batched_svd");
}
#endif

}  // namespace

void register_batched_svd(py::module_& m) {
  m.attr("batched_svd_max_side") = cpu::BATCHED_SVD_MAX_SIDE;
  m.attr("batched_svd_max_size") = cpu::BATCHED_SVD_MAX_SIZE;
  m.attr("batched_svd_cuda_max_size") = cuda::BATCHED_SVD_MAX_SIZE;
  m.def("batched_svd_cpu", &batched_svd_cpu, py::arg("x"), py::arg("values"),
        py::arg("left").none(true), py::arg("right").none(true), py::arg("bounds"),
        py::arg("checks"), py::arg("methods"), py::arg("high"), py::arg("threads"), py::arg("isa"));
  m.def("batched_svd_emulated", &batched_svd_emulated, py::arg("x"), py::arg("outputs"),
        py::arg("effort"), py::arg("threads"), py::arg("near"));
#ifdef ANISO_HAS_CUDA
  m.def("batched_svd_cuda_max_side", &cuda::batched_svd_max_side);
  m.def("batched_svd_cuda", &batched_svd_cuda, py::arg("x"), py::arg("outputs"), py::arg("effort"),
        py::arg("workspace"), py::arg("stream"));
  m.def("batched_svd_workspace_bytes", &batched_svd_workspace_bytes, py::arg("x"),
        py::arg("outputs"), py::arg("effort"));
#endif
}

}  // namespace aniso
