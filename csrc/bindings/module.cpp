#include "bindings/register.hpp"
#include "cpu/isa.hpp"

PYBIND11_MODULE(_native, m) {
  m.doc() = "Compiled kernels of aniso; call them through aniso's ops.";
  m.attr("version") = ANISO_VERSION;
  m.attr("isa") = aniso::cpu::isa_name(aniso::cpu::best_isa());
#ifdef ANISO_HAS_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
  aniso::register_batched_svd(m);
  aniso::register_ceilings(m);
  aniso::register_gram(m);
  aniso::register_pair_histogram(m);
  aniso::register_group_moments(m);
  aniso::register_row_moments(m);
  aniso::register_spectral_map(m);
}
