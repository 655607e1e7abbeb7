"""The additive statistics: update, merge, save, load, compute."""

from aniso.state.layer_state import LayerState
from aniso.state.sources import Block, Sources

__all__ = ["Block", "LayerState", "Sources"]
