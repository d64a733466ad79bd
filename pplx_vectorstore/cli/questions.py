"""What is asked: the words of the command line, or standard input."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TextIO

from pplx_vectorstore.documents import has_lone_surrogate, is_blank
from pplx_vectorstore.errors import InvalidInputError

STANDARD_INPUT = "-"


class Question(NamedTuple):
    """What is asked.

    Attributes:
        text: As it was given, without space around it.
        line: Of standard input, from 1; None where it is no line of that.
    """

    text: str
    line: int | None = None

    def require_text(self) -> str:
        """Return the text.

        Raises:
            InvalidInputError: It is blank, or holds bytes that are no text.
        """
        if is_blank(self.text):
            raise InvalidInputError("a query must not be blank")
        if has_lone_surrogate(self.text):
            raise InvalidInputError(f"a query must be text, and {self.text!r} holds bytes that are none in UTF-8")
        return self.text


def read_questions(words: Sequence[str], *, one_a_line: bool) -> Iterator[Question]:
    """Yield what is asked.

    Args:
        words: Of the command line; alone, ``-`` stands for standard input.
        one_a_line: Whether each line of standard input is a question, which is yielded when it comes, rather than all
            of it together. Blank lines are none; whether the others are text, who asks them sees.

    Raises:
        InvalidInputError: Nothing is asked, or no text.
    """
    if list(words) == [STANDARD_INPUT] and one_a_line:
        for number, line in enumerate(_standard_input(), 1):
            if not is_blank(line):
                yield Question(line.strip(), number)
        return
    question = Question(_standard_input().read().strip() if list(words) == [STANDARD_INPUT] else " ".join(words))
    question.require_text()
    yield question


def _standard_input() -> TextIO:
    if sys.stdin is None:
        raise InvalidInputError("the question is to come from standard input, which is closed")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # one line that is no text must not take the others along
    return sys.stdin
