"""A program that reads a PDF's pages: a JSON object in, and one in a line out for each page.

A process of its own, within a bound of memory: a file of some hundred kilobytes can unpack to gigabytes, or stop the
engine for good. Whoever reads what it says ends it after a while.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    """Read the request's line and the file from standard input, and write pages to standard output."""
    request = json.loads(sys.stdin.buffer.readline())
    sys.path.extend(request["path"])
    _bound(request["most_bytes"], request["most_seconds"])
    data = sys.stdin.buffer.read()
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(data, password=request["password"])
    except pypdfium2.PdfiumError as error:
        _say({"error": str(error)})
        return
    _say({"pages": len(pdf)})
    for index in range(request["first"], len(pdf)):
        _say({"begun": index})
        try:
            page = pdf[index]
            text_page = page.get_textpage()
            text = text_page.get_text_range()
            has_images = not text.strip() and any(True for _ in page.get_objects(max_depth=2))
            text_page.close()
            page.close()
        except (pypdfium2.PdfiumError, MemoryError, ValueError) as error:
            _say({"page": index, "error": str(error) or type(error).__name__})
        else:
            _say({"page": index, "text": text, "is_scan": has_images})


def _bound(most_bytes: int, most_seconds: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: there, whoever reads bounds the time alone
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # to run out of memory ends it, and leaves nothing behind
    resource.setrlimit(resource.RLIMIT_CPU, (most_seconds, most_seconds))  # should nobody be there to end it
    if sys.platform != "darwin":  # which refuses the bound
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        bound = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (bound, hard))


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
