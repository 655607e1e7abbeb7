"""Triton kernels, installed as `aniso.triton_kernels`: Triton ships a package of the bare name."""

if __name__ != "aniso.triton_kernels":
    raise ImportError("import aniso.triton_kernels; the bare name triton_kernels is Triton's own")
