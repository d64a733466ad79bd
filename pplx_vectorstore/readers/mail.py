"""E-mail messages (.eml) → text, or Markdown where they are HTML."""

from __future__ import annotations

import email
import email.errors
import email.header
import email.message
import email.policy

from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.readers.anchors import HEADING_KEY
from pplx_vectorstore.readers.content import Blocks, Content, ReaderOptions, shorten
from pplx_vectorstore.readers.html import read_html
from pplx_vectorstore.readers.plain import text_encoding

_HEADERS = ("From", "To", "Cc", "Date")
_MOST_PARTS = 500
_MOST_CHARACTERS_OF_A_HEADER = 10_000  # that is some hundred recipients


def read_mail(data: bytes, options: ReaderOptions) -> Content:
    """Read a message: its subject, who wrote it to whom and when, and its text, plain where there is a plain one.

    Attachments are named, and not read.

    Raises:
        UnreadableFileError: It is no message, or the extra is missing for one that is HTML alone.
    """
    # Headers as they are written: the policies that parse addresses take long for some lists, and fail at others.
    try:
        message = email.message_from_bytes(data, policy=email.policy.compat32)
        parts = [part for part in message.walk() if not part.is_multipart()][:_MOST_PARTS]
    except RecursionError as error:
        raise UnreadableFileError("is an e-mail message of parts within parts without end") from error
    if not (message.get("From") or message.get("Subject")):
        raise UnreadableFileError("is no e-mail message: it has neither a sender nor a subject")
    attached = [part for part in parts if _is_attached(part)]
    texts = [part for part in parts if not _is_attached(part)]
    plain = [part for part in texts if part.get_content_subtype() != "html"]
    format_ = "text" if plain else "markdown"
    blocks = Blocks()
    subject = _header(message, "Subject")
    title = {HEADING_KEY: [shorten(subject)]} if plain and subject else None  # in plain text, nothing is marked
    blocks.add(subject if plain or not subject else f"# {subject}", title)
    headers = [(name, _header(message, name)) for name in _HEADERS]
    blocks.add("\n".join(f"{name}: {value}" for name, value in headers if value))
    for part in plain or texts:
        blocks.add(_text(part))
    names = [shorten(_decoded(str(part.get_filename()))) for part in attached if part.get_filename()]
    return Content(
        text=blocks.text,
        format=format_,
        anchors=blocks.anchors,
        metadata={"title": shorten(subject)} if subject else {},
        notes=[f"has attachments, which are not read: {', '.join(names)}"] if names else [],
    )


def _is_attached(part: email.message.Message) -> bool:
    return part.get_content_disposition() == "attachment" or part.get_content_maintype() != "text"


def _text(part: email.message.Message) -> str:
    body = part.get_payload(decode=True)
    payload = body if isinstance(body, bytes) else b""
    text = payload.decode(text_encoding(part.get_content_charset() or "") or "utf-8", "replace")
    if part.get_content_subtype() == "html":
        return read_html(text.encode("utf-8", "replace"), ReaderOptions(encoding="utf-8")).text
    return text.replace("\r\n", "\n").strip()


def _header(message: email.message.Message, name: str) -> str:
    raw = next((str(value) for key, value in message.raw_items() if key.lower() == name.lower()), "")
    # Bytes that are not ASCII stand in it as lone surrogates, and are UTF-8 where they are anything.
    return _decoded(raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def _decoded(written: str) -> str:
    """Return a header's value with the words decoded that are not ASCII."""
    written = " ".join(written[:_MOST_CHARACTERS_OF_A_HEADER].split())
    try:
        decoded = str(email.header.make_header(email.header.decode_header(written)))
    except (email.errors.MessageError, LookupError, ValueError):
        return written
    return " ".join(decoded.split())
