"""Which files are documents, by name and by what they begin with, and what each is read by."""

from __future__ import annotations

import codecs
import io
import lzma
import re
import zipfile
import zlib
from functools import partial
from pathlib import PurePath

from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.readers.books import read_book
from pplx_vectorstore.readers.content import Content, Reader, ReaderOptions
from pplx_vectorstore.readers.html import read_html
from pplx_vectorstore.readers.mail import read_mail
from pplx_vectorstore.readers.notebooks import read_notebook
from pplx_vectorstore.readers.pdf import read_pdf
from pplx_vectorstore.readers.plain import read_text
from pplx_vectorstore.readers.sheets import read_sheets
from pplx_vectorstore.readers.slides import read_slides
from pplx_vectorstore.readers.tables import read_csv, read_json_lines
from pplx_vectorstore.readers.word import read_word

FORMATS = {
    ".c": "c",
    ".cc": "cpp",
    ".cpp": "cpp",
    ".cxx": "cpp",
    ".go": "go",
    ".h": "c",
    ".hpp": "cpp",
    ".java": "java",
    ".js": "javascript",
    ".jsx": "javascript",
    ".markdown": "markdown",
    ".md": "markdown",
    ".mdx": "markdown",
    ".mjs": "javascript",
    ".py": "python",
    ".pyi": "python",
    ".rs": "rust",
    ".ts": "typescript",
    ".tsx": "tsx",
}
"""How text of each suffix is cut; other text is cut as text."""

READERS: dict[str, Reader] = {
    ".csv": read_csv,
    ".docm": read_word,
    ".docx": read_word,
    ".eml": read_mail,
    ".epub": read_book,
    ".htm": read_html,
    ".html": read_html,
    ".ipynb": read_notebook,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".pdf": read_pdf,
    ".pptm": read_slides,
    ".pptx": read_slides,
    ".tab": read_csv,
    ".tsv": read_csv,
    ".xhtml": read_html,
    ".xlsm": read_sheets,
    ".xlsx": read_sheets,
}
"""What reads files of each suffix, where their first bytes do not say otherwise; others are read as text."""

_ARCHIVED: dict[str, Reader] = {
    "word/document.xml": read_word,
    "ppt/presentation.xml": read_slides,
    "xl/workbook.xml": read_sheets,
    "META-INF/container.xml": read_book,
}
_BINARY_READERS = {read_pdf, *_ARCHIVED.values()}

_PDF = b"%PDF-"
_ZIP = b"PK\x03\x04"
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_HTML = re.compile(
    rb"\A(?:\xef\xbb\xbf)?\s*(?:<!--.{0,1000}?-->\s*)?<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_FIRST_BYTES = 1024

_KINDS_BY_SUFFIX = {
    "picture": "ai avif bmp eps gif heic ico icns jpeg jpg png psd raw svg svgz tif tiff webp xcf",
    "sound or film": "aac avi flac m4a m4v mid mkv mov mp3 mp4 mpeg mpg ogg opus wav webm wma wmv",
    "font": "eot otf ttc ttf woff woff2",
    "archive": "7z bz2 deb dmg gz iso jar lz4 rar rpm tar tgz whl xz zip zst",
    "program": "a bin class dll dylib egg elf exe lib msi o obj pdb pyc pyd pyo so wasm",
    "data": "arrow avro bson ckpt dat db feather gguf h5 hdf5 mat mdb npy npz onnx orc parquet pb pickle pkl pt pth "
    "rdb safetensors sqlite sqlite3 tfrecord",
    "key or certificate": "cer crt csr der gpg jks kdbx key keystore p12 p7b pem pfx ppk",
    "lock file": "lock lockb",
    "minified": "map min.css min.html min.js min.mjs min.svg",
    "temporary": "bak crdownload part swo swp temp tmp",
}
_KINDS_BY_NAME = {
    "lock file": "bun.lockb composer.lock go.sum npm-shrinkwrap.json package-lock.json packages.lock.json "
    "pnpm-lock.yaml yarn.lock",
    "key or certificate": "authorized_keys id_dsa id_ecdsa id_ed25519 id_rsa known_hosts secring.gpg",
    "of the system": "thumbs.db desktop.ini",
}
_SUFFIXES = {suffix: kind for kind, suffixes in _KINDS_BY_SUFFIX.items() for suffix in suffixes.split()}
_NAMES = {name: kind for kind, names in _KINDS_BY_NAME.items() for name in names.split()}

_RTF = b"{\\rtf"
_OPEN_DOCUMENT = b"application/vnd.oasis.opendocument"
_SVG = re.compile(
    rb"\A(?:\xef\xbb\xbf)?\s*(?:<(?:\?xml|!--|!DOCTYPE\s+svg)[^>]{0,1000}>\s*){0,9}<(?:svg:)?svg\b", re.IGNORECASE
)
# Of keys and certificates in letters; whether the block is one that must not be shown.
_PEM = re.compile(
    rb"^(?:\xef\xbb\xbf)?[ \t]*-----BEGIN (?:[A-Z0-9]+ )*"
    rb"(?:(PRIVATE KEY)|PUBLIC KEY|CERTIFICATE(?: REQUEST)?)(?: BLOCK)?-----"
    rb".*?(?:-----END [A-Z0-9 ]+-----|\Z)",
    re.MULTILINE | re.DOTALL,
)
# What is about keys quotes one; of what is one, it is the most, or, with remarks and the numbers in it, a good part.
_SHARE_OF_KEYS = 0.5
_SHARE_OF_PRIVATE_KEYS = 0.25
_MARKED_UP = (".xml", ".html", ".htm", ".xhtml", ".txt")
_PROGRAMMED = (".cjs", ".css", ".js", ".json", ".mjs", ".xml")
_MINIFIED_BYTES = 5_000
_MOST_BYTES_OF_A_LINE = 1_000
_LEAST_SPACES = 0.1


def kind_by_name(name: str) -> str | None:
    """Return what kind of a file that is no document a name tells of, or None.

    >>> kind_by_name("logo.SVG"), kind_by_name("app.min.js"), kind_by_name("notes.md")
    ('picture', 'minified', None)
    """
    lowered = name.lower()
    if lowered.startswith("www."):  # the name of a site, of which the end is a country
        return None
    _, *suffixes = lowered.split(".")
    last_two = ".".join(suffixes[-2:])
    return _NAMES.get(lowered) or _SUFFIXES.get(last_two) or (_SUFFIXES.get(suffixes[-1]) if suffixes else None)


def kind_by_content(name: str, data: bytes) -> str | None:
    """Return what kind of a file that is no document its bytes tell of, or None."""
    if _is_key(data):
        return "key or certificate"
    suffix = PurePath(name).suffix.lower()
    if suffix in _MARKED_UP and _SVG.match(data):
        return "picture"
    if suffix in _PROGRAMMED and len(data) >= _MINIFIED_BYTES:
        lines = data.count(b"\n") + 1
        # What people write has line ends, or at least a space after every few letters.
        if len(data) / lines > _MOST_BYTES_OF_A_LINE and data.count(b" ") < _LEAST_SPACES * len(data):
            return "minified"
    return None


def _is_key(data: bytes) -> bool:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data[2:].replace(b"\0", b"")
    found = [(len(block[0]), bool(block[1])) for block in _PEM.finditer(data)]
    share = _SHARE_OF_PRIVATE_KEYS if any(is_private for _, is_private in found) else _SHARE_OF_KEYS
    return bool(found) and sum(length for length, _ in found) >= share * len(data.strip())


def find_reader(name: str, data: bytes) -> Reader:
    """Return what reads a file: by what it begins with, where that is a format's mark, or else by its suffix.

    Raises:
        UnreadableFileError: It is of a format that cannot be read.
    """
    suffix = PurePath(name).suffix.lower()
    reader = READERS.get(suffix)
    if _PDF in data[:_FIRST_BYTES] and (reader is read_pdf or data.startswith(_PDF)):
        return read_pdf
    if data.startswith(_OLD_OFFICE):
        raise UnreadableFileError(
            "is of an old Office format (.doc, .ppt, .xls, .msg), or protected by a password; save it as .docx, .pptx "
            "or .xlsx without one"
        )
    if data.startswith(_RTF):
        raise UnreadableFileError("is RTF; save it as .docx")
    if data.startswith(_ZIP):
        return _reader_of_archive(data) or (reader if reader in _BINARY_READERS else None) or _refuse_archive()
    if reader in _BINARY_READERS and _HTML.match(data):  # such as a page that tells that the file is not there
        return read_html
    return reader or partial(read_text, format=FORMATS.get(suffix, "text"))


def read_content(name: str, data: bytes, options: ReaderOptions) -> Content:
    """Read a file's bytes.

    Raises:
        UnreadableFileError: It is binary, broken, holds no text, or needs an extra.
    """
    content = find_reader(name, data)(data, options)
    if not content.text.strip():
        raise UnreadableFileError("holds no text")
    return content


def _reader_of_archive(data: bytes) -> Reader | None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = set(archive.namelist())
            mark = archive.open("mimetype").read(len(_OPEN_DOCUMENT)) if "mimetype" in names else b""
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, OSError, ValueError):
        return None  # whoever reads it says what is wrong
    if mark == _OPEN_DOCUMENT:
        raise UnreadableFileError("is an OpenDocument file (.odt, .ods, .odp); save it as .docx, .xlsx, .pptx or PDF")
    return next((reader for part, reader in _ARCHIVED.items() if part in names), None)


def _refuse_archive() -> Reader:
    raise UnreadableFileError("is an archive; unpack it first")
