#include "bindings/register.hpp"
#include "bindings/tensor_ref.hpp"
#include "cpu/read_stream.hpp"

namespace aniso {
namespace {

uint64_t read_stream_cpu(const py::object& buffer, int threads) {
  const TensorRef ref(buffer, "buffer");
  const void* data = ref.data();
  const int64_t bytes = ref.bytes();
  if (ref.on_cuda()) throw py::value_error("buffer lies on a GPU; read_stream_cpu reads memory");
  py::gil_scoped_release released;
  return cpu::read_stream(data, bytes, threads);
}

}  // namespace

void register_ceilings(py::module_& m) {
  m.def("read_stream_cpu", &read_stream_cpu, py::arg("buffer"), py::arg("threads"));
}

}  // namespace aniso
