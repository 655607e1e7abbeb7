"""Readers and writers of activation dumps."""

from aniso.dumps._part import Part
from aniso.dumps.dump import Dump, DumpBlock, DumpLayer, open_dump
from aniso.dumps.writer import DumpWriter

__all__ = ["Dump", "DumpBlock", "DumpLayer", "DumpWriter", "Part", "open_dump"]
