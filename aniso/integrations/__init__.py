"""Adapters to other libraries, one module each; none is imported by the rest of aniso."""
