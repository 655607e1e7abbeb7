// Every op registers itself with one function; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace aniso {

void register_batched_svd(pybind11::module_& m);
void register_ceilings(pybind11::module_& m);
void register_gram(pybind11::module_& m);
void register_pair_histogram(pybind11::module_& m);
void register_group_moments(pybind11::module_& m);
void register_row_moments(pybind11::module_& m);
void register_spectral_map(pybind11::module_& m);

}  // namespace aniso
