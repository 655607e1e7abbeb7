"""Readers and writers of activation dumps."""

from aniso.dumps._part import Part
from aniso.dumps._read_ahead import Waiting
from aniso.dumps.dump import Dump, DumpBlock, DumpLayer, StoredBlock, open_dump, read_blocks
from aniso.dumps.writer import DumpWriter, RowWriter

__all__ = [
    "Dump",
    "DumpBlock",
    "DumpLayer",
    "DumpWriter",
    "Part",
    "RowWriter",
    "StoredBlock",
    "Waiting",
    "open_dump",
    "read_blocks",
]
