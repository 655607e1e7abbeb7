"""The additive statistics: update, merge, save, load, compute."""

from aniso.state.file import STATE_SUFFIX, is_state, state_facts
from aniso.state.gathered_state import GatheredState, rows_that_wait
from aniso.state.layer_state import LayerState
from aniso.state.paired_state import PairedState
from aniso.state.row_sample import RowSample
from aniso.state.sequence_state import SequenceState
from aniso.state.sketch_state import SketchState
from aniso.state.sources import Block, Sources

__all__ = [
    "STATE_SUFFIX",
    "Block",
    "GatheredState",
    "LayerState",
    "PairedState",
    "RowSample",
    "SequenceState",
    "SketchState",
    "Sources",
    "is_state",
    "rows_that_wait",
    "state_facts",
]
