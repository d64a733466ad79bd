"""E-mail messages (.eml) → Markdown."""

from __future__ import annotations

import email
import email.message
import email.policy

from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.readers.content import Blocks, Content, ReaderOptions
from pplx_vectorstore.readers.html import read_html

_HEADERS = ("From", "To", "Cc", "Date")
_MOST_PARTS = 500


def read_mail(data: bytes, options: ReaderOptions) -> Content:
    """Read a message: its subject, who wrote it to whom and when, and its text, plain where there is a plain one.

    Attachments are named, and not read.

    Raises:
        UnreadableFileError: It is no message, or the extra is missing for one that is HTML alone.
    """
    message = email.message_from_bytes(data, policy=email.policy.default)
    if not isinstance(message, email.message.EmailMessage) or not (message.get("From") or message.get("Subject")):
        raise UnreadableFileError("is no e-mail message: it has neither a sender nor a subject")
    blocks = Blocks()
    subject = _header(message, "Subject")
    blocks.add(f"# {subject}" if subject else "")
    headers = [(name, _header(message, name)) for name in _HEADERS]
    blocks.add("\n".join(f"{name}: {value}" for name, value in headers if value))
    parts = [part for part in message.walk() if not part.is_multipart()][:_MOST_PARTS]
    attached = [part for part in parts if part.is_attachment() or part.get_content_maintype() != "text"]
    texts = [part for part in parts if part not in attached]
    plain = [part for part in texts if part.get_content_subtype() != "html"]
    for part in plain or texts:
        blocks.add(_text(part))
    names = [" ".join(str(part.get_filename()).split()) for part in attached if part.get_filename()]
    notes = [f"has attachments, which are not read: {', '.join(names)}"] if names else []
    return Content(text=blocks.text, format="markdown", metadata={"title": subject} if subject else {}, notes=notes)


def _text(part: email.message.EmailMessage) -> str:
    body = part.get_payload(decode=True)
    payload = body if isinstance(body, bytes) else b""
    charset = part.get_content_charset() or "utf-8"
    try:
        text = payload.decode(charset, "replace")
    except LookupError:
        text = payload.decode("utf-8", "replace")
    if part.get_content_subtype() == "html":
        return read_html(text.encode("utf-8", "replace"), ReaderOptions(encoding="utf-8")).text
    return text.replace("\r\n", "\n").strip()


def _header(message: email.message.EmailMessage, name: str) -> str:
    return " ".join(str(message.get(name, "")).split())
