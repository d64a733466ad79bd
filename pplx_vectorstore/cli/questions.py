"""What is asked: the words of the command line, or standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from pplx_vectorstore.documents import is_blank
from pplx_vectorstore.errors import InvalidInputError

STANDARD_INPUT = "-"


def read_questions(words: Sequence[str], *, one_a_line: bool) -> Iterator[str]:
    """Yield what is asked.

    Args:
        words: Of the command line; alone, ``-`` stands for standard input.
        one_a_line: Whether each line of standard input is a question, which is yielded when it comes, rather than all
            of it together. Blank lines are none.

    Raises:
        InvalidInputError: Nothing is asked.
    """
    if list(words) != [STANDARD_INPUT]:
        yield _required(" ".join(words))
    elif one_a_line:
        for line in sys.stdin:
            if not is_blank(line):
                yield line.strip()
    else:
        yield _required(sys.stdin.read().strip())


def _required(question: str) -> str:
    if is_blank(question):
        raise InvalidInputError("a query must not be blank")
    return question
