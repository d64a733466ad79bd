"""Files → text, with anchors that tell where in the file it stands.

A reader is a function from bytes and options to a `Content`. There is one in a module for each format; `kinds` knows
which reads what, and what is no document.
"""

from pplx_vectorstore.file_ids import LINE_KEY
from pplx_vectorstore.readers.anchors import HEADING_KEY, PLACE_KEYS, label_chunks
from pplx_vectorstore.readers.content import Anchor, Content, Reader, ReaderOptions
from pplx_vectorstore.readers.kinds import FORMATS, READERS, kind_by_content, kind_by_name, read_content

__all__ = [
    "FORMATS",
    "HEADING_KEY",
    "LINE_KEY",
    "PLACE_KEYS",
    "READERS",
    "Anchor",
    "Content",
    "Reader",
    "ReaderOptions",
    "kind_by_content",
    "kind_by_name",
    "label_chunks",
    "read_content",
]
