"""Splices with known sources: cut-outs, the compositor, and the file ``splices.json``."""

from oesir_d2.data.splicing.alpha import AlphaCutOuts
from oesir_d2.data.splicing.coco import CocoCutOuts
from oesir_d2.data.splicing.compositor import HostPhoto, Splice, SpliceOptions, UncomposableError, compose
from oesir_d2.data.splicing.cutouts import CutOut, CutOutFilter, CutOutSource
from oesir_d2.data.splicing.generation import make_splice_set
from oesir_d2.data.splicing.photos import PhotoCutOuts, read_boxes
from oesir_d2.data.splicing.splices_file import (
    DatabaseImage,
    SpliceQuery,
    SpliceSet,
    SpliceSource,
    read_splices,
    write_splices,
)

__all__ = [
    "AlphaCutOuts",
    "CocoCutOuts",
    "CutOut",
    "CutOutFilter",
    "CutOutSource",
    "DatabaseImage",
    "HostPhoto",
    "PhotoCutOuts",
    "Splice",
    "SpliceOptions",
    "SpliceQuery",
    "SpliceSet",
    "SpliceSource",
    "UncomposableError",
    "compose",
    "make_splice_set",
    "read_boxes",
    "read_splices",
    "write_splices",
]
