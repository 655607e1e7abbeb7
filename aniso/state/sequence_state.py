"""The additive statistics of the spectra of sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aniso.errors import InputError
from aniso.metrics.sequence_spectra import finite_tokens, kept_tokens, spectra_of
from aniso.metrics.sequence_summary import SequenceSummary, SequenceTallies
from aniso.ops._arrays import as_tensor
from aniso.state.file import load_state, save_state, take_over
from aniso.state.sources import Block, Sources

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_KIND = "SequenceState"


class SequenceState:
    """How the spectra of single sequences are distributed; some kilobytes, whatever their number.

    Example:
        >>> state = SequenceState()
        >>> state.update(torch.eye(4).repeat(3, 1, 1), lengths=torch.tensor([4, 2, 0]))
        >>> summary = state.compute()
        >>> summary.sequences, summary.empty, summary.metrics["explained_variance_1"].mean
        (3, 1, 0.375)
    """

    def __init__(self) -> None:
        self.tallies = SequenceTallies.zeros()
        self.sources = Sources()

    def update(
        self, x: Any, *, lengths: Any = None, mask: Any = None, block: Block | None = None
    ) -> None:
        """Adds sequences. Tokens that are not finite are left out and counted.

        Args:
            x: Hidden states, [b, t, d], float64/float32/float16/bfloat16, CPU or CUDA.
            lengths: Tokens of each sequence, padded on the right, [b], integers. Default: all t.
            mask: Tokens to keep, in place of lengths, [b, t], bool.
            block: Which sequences of a source these are; those of a known block never count twice.

        Raises:
            InputError: another shape or dtype, lengths out of range, lengths and mask together, or
                sequences counted already.

        Time O(t d min(t, d)) per sequence.
        """
        states = as_tensor(x)
        kept = kept_tokens(states, lengths, mask)
        sources = self.sources if block is None else self.sources.add(block)
        usable = kept & finite_tokens(states)
        left_out = int(kept.sum() - usable.sum())
        added = SequenceTallies.of(spectra_of(states, usable), left_out)
        self.tallies, self.sources = self.tallies.merge(added), sources

    def merge(self, other: SequenceState) -> SequenceState:
        """The state of both sets of sequences; neither operand changes.

        Raises:
            InputError: another kind of state, or both hold the same sequences of a source.
        """
        if not isinstance(other, SequenceState) or other is self:
            what = "itself" if other is self else f"a {type(other).__name__}"
            raise InputError(f"cannot merge a state with {what}; pass another SequenceState")
        merged = SequenceState()
        merged.sources = self.sources.merge(other.sources)
        merged.tallies = self.tallies.merge(other.tallies)
        return merged

    def __add__(self, other: SequenceState) -> SequenceState:
        """Same as `merge`."""
        return self.merge(other)

    def reset(self) -> None:
        """Forgets all sequences."""
        self.tallies, self.sources = SequenceTallies.zeros(), Sources()

    def compute(self) -> SequenceSummary:
        """Counts, means, histograms and the mean CDF so far."""
        return self.tallies.summary()

    def state_dict(self) -> dict[str, Tensor]:
        """The accumulators by name; they share memory with the state."""
        return self.tallies.tensors()

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Takes over accumulators as `state_dict` gives them.

        Raises:
            InputError: names or shapes that do not belong to this state.
        """
        take_over(self.state_dict(), tensors, "a SequenceState")

    def save(self, path: str | Path, *, layer: str | None = None) -> None:
        """Writes the state to a safetensors file, atomically, with schema and sources."""
        save_state(path, self.state_dict(), self.sources, layer, _KIND)

    @classmethod
    def load(cls, path: str | Path) -> SequenceState:
        """Reads a state that `save` wrote.

        Raises:
            InputError: no such file, not a SequenceState, damaged, or of a newer schema.
        """
        tensors, sources = load_state(path, _KIND)
        state = cls()
        state.load_state_dict(tensors)
        state.sources = sources
        return state

    def __repr__(self) -> str:
        return f"<SequenceState {int(self.tallies.counts[0])} sequences>"
