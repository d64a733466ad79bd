import time
import zlib

import pytest
from file_samples import PICTURE, pdf, shown
from pdf_encryption import Encryption

from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.readers import ReaderOptions, read_content
from pplx_vectorstore.readers import pdf as reader


def read(data, **options):
    return read_content("a.pdf", data, ReaderOptions(**options))


def refuse(data, **options):
    with pytest.raises(UnreadableFileError) as caught:
        read(data, **options)
    return str(caught.value)


def page_stream(dictionary, data):
    return b"<< %s /Length %d >>\nstream\n%s\nendstream" % (dictionary, len(data), data)


def test_pages_are_marked_and_words_are_whole():
    content = read(pdf(shown("First page, with a won-", "der in it."), shown("Second."), shown("Third.")))
    assert content.text == "First page, with a wonder in it.\n\nSecond.\n\nThird."
    assert content.anchors == [(0, {"page": 1}), (34, {"page": 2}), (43, {"page": 3})]
    assert content.losses == []


def test_columns_come_one_after_the_other():
    left = b"BT /F1 12 Tf 72 720 Td (Left one) Tj 0 -14 Td (left two) Tj ET"
    right = b"BT /F1 12 Tf 350 720 Td (Right one) Tj 0 -14 Td (right two) Tj ET"
    text = read(pdf(left + b" " + right)).text
    assert text.index("left two") < text.index("Right one")


def test_scans_are_said():
    mixed = read(pdf(shown("Text"), PICTURE, PICTURE, shown("More"), PICTURE))
    assert mixed.losses == ["pages 2-3, 5 hold no text (scans?)"]
    assert [values["page"] for _, values in mixed.anchors] == [1, 4]
    assert refuse(pdf(PICTURE)).startswith("holds no text (a scan?)")
    assert refuse(pdf(b"")) == "holds no text"


@pytest.mark.parametrize("cipher", ["aes", "rc4"])
def test_passwords(cipher):
    locked = pdf(shown("Secret words"), encryption=Encryption(cipher, user=b"open", owner=b"own"))
    assert refuse(locked) == "is a PDF with a password; give it with --password"
    assert refuse(locked, password="wrong").startswith(
        "is a PDF with a password, and the one that was given is not it;"
    )
    assert read(locked, password="open").text == "Secret words"
    # One that only its owner may change, anybody may read.
    assert read(pdf(shown("Words"), encryption=Encryption(cipher))).text == "Words"


def test_a_password_is_not_shown():
    assert "s3cret" not in repr(ReaderOptions(password="s3cret"))


def test_broken_files():
    whole = pdf(shown("One"), shown("Two"))
    # With a table that is of no use, it can still be read; cut off, it cannot.
    assert read(whole.replace(b" 00000 n ", b" 00001 f ")).text == "One\n\nTwo"
    assert "cannot be read" in refuse(whole[: len(whole) // 2])
    assert "cannot be read" in refuse(b"no pdf at all")
    assert "cannot be read" in refuse(b"%PDF-1.4\n%%EOF")
    renamed = read(b"<!DOCTYPE html><title>404</title><p>Not found")
    assert (renamed.text, renamed.metadata) == ("Not found", {"title": "404"})


def test_pages_that_go_in_circles_or_are_not_there():
    assert read(pdf(shown("One"), kids=b"2 0 R")).text == "One"
    content = read(pdf(shown("One"), kids=b"99 0 R", count=2))
    assert content.text == "One"
    started = time.monotonic()
    assert read(pdf(shown("One"), count=10**9)).text == "One"
    assert time.monotonic() - started < 30


@pytest.fixture(scope="module")
def bomb():
    """A page of 600 MB, in 600 kB."""
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(b" 0 0 m" * 100_000) for _ in range(1000)) + packer.flush()
    return page_stream(b"/Filter /FlateDecode", packed)


def test_a_page_that_takes_too_much_is_skipped_and_the_others_are_read(bomb, monkeypatch):
    assert len(bomb) < 4_000_000
    monkeypatch.setattr(reader, "MOST_BYTES", 400_000_000)
    monkeypatch.setattr(reader, "MOST_SECONDS", 10.0)
    content = read(pdf(shown("Before"), bomb, shown("After")))
    assert content.text == "Before\n\nAfter"
    assert [values["page"] for _, values in content.anchors] == [1, 3]
    assert len(content.losses) <= 1
    assert all("page 2" in loss for loss in content.losses)


def test_a_page_that_takes_too_long_is_skipped(bomb, monkeypatch):
    monkeypatch.setattr(reader, "MOST_SECONDS", 0.05)
    with pytest.raises(UnreadableFileError, match="it took more than 0 seconds"):
        read(pdf(bomb))


def test_ranges_of_pages():
    assert reader._numbers([2]) == "page 3"
    assert reader._numbers([0, 1, 2, 6, 8, 9]) == "pages 1-3, 7, 9-10"


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(reader.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'pplx-vectorstore[documents]'" in refuse(pdf(shown("x")))
