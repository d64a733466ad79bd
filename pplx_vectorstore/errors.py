"""Every error this library raises on purpose.

::

    PplxVectorStoreError
    ├── InvalidInputError (ValueError)      an argument or a document is not usable
    │   ├── InvalidDocumentError
    │   │   └── DuplicateDocumentError
    │   └── UnsupportedFilterError
    ├── MissingExtraError (ImportError)     an optional dependency is not installed
    ├── ModelError
    │   ├── UnknownModelError               no such model, or it cannot be fetched
    │   ├── ModelFileError                  a checkpoint is broken, altered or of another layout
    │   ├── ApiError                        the hosted service refused, or could not be reached
    │   └── EncodingError                   the model gave something that must not be stored
    │       └── AlignmentError              vectors and chunks do not correspond
    ├── StoreError
    │   ├── StoreNotFoundError              no index where one was expected
    │   ├── StoreLockedError                another process has it, and did not let go in time
    │   ├── StoreReadOnlyError              it is open to be read, or lies where nothing can be written
    │   ├── StoreFullError                  the disk has no room
    │   ├── StoreClosedError
    │   ├── SchemaMismatchError             written with another model, dimension or schema
    │   └── ServerError                     a Qdrant server refused a request
    │       ├── ServerUnavailableError      it gave no usable answer, however often it was asked
    │       └── UnsupportedServerError      it is too old for what was asked
    └── UnreadableFileError                 a file holds no text that can be indexed

Messages say what was expected, what came, and the way out.

The errors of a server's or a service's client are neither the cause nor the context of ours: they hold the request, and
its headers the key. What they say is in the message.
"""

from __future__ import annotations

from typing import Any


class PplxVectorStoreError(Exception):
    """Base of every error raised by this library.

    Attributes:
        report: What was written before, where ``add`` or ``sync`` failed part-way
            (`AddReport`, `SyncReport`); else None.
    """

    report: object | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what the error says and carries, whatever its class is made from."""
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[PplxVectorStoreError], arguments: tuple[Any, ...], state: dict[str, Any]) -> Any:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(state)
    return error


class InvalidInputError(PplxVectorStoreError, ValueError):
    """An argument is of the wrong type or out of range."""


class InvalidDocumentError(InvalidInputError):
    """A document, a chunk, an id or metadata cannot be stored as it is."""


class DuplicateDocumentError(InvalidDocumentError):
    """One call holds two documents, or two chunks, of the same id."""


class UnsupportedFilterError(InvalidInputError):
    """A filter says something the engine cannot evaluate."""


class MissingExtraError(PplxVectorStoreError, ImportError):
    """An optional dependency is needed and not installed.

    Args:
        purpose: What it is needed for.
        extra: The extra of this distribution that installs it.
    """

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs packages that are not installed: pip install 'pplx-vectorstore[{extra}]'")
        self.extra = extra


class ModelError(PplxVectorStoreError):
    """Something is wrong with a model or with what it computed."""


class UnknownModelError(ModelError):
    """No model of this name is known, or it could not be fetched."""


class ModelFileError(ModelError):
    """A checkpoint's files are missing, truncated, altered or of an unsupported layout."""


class ApiError(ModelError):
    """The service that hosts a model refused a request, or could not be reached."""


class EncodingError(ModelError):
    """The model's output must not be stored (NaN, infinity, wrong shape)."""


class AlignmentError(EncodingError):
    """The number of vectors differs from the number of chunks, or a span is out of range."""


class StoreError(PplxVectorStoreError):
    """The store could not do what was asked."""


class StoreNotFoundError(StoreError):
    """There is no index at the given place, or the folder holds something else."""


class StoreLockedError(StoreError):
    """Another process has the index, and did not let go of it in time."""


class StoreReadOnlyError(StoreError):
    """A store that was opened to be read, or lies where nothing can be written, was asked to write."""


class StoreFullError(StoreError):
    """The disk has no room for what was asked; what was acknowledged before is safe and can be searched.

    Args:
        message: What an error says.
        needed: Bytes that have to be free.
        free: Bytes that are.
    """

    def __init__(self, message: str, *, needed: int = 0, free: int = 0) -> None:
        super().__init__(message)
        self.needed = needed
        self.free = free


class StoreClosedError(StoreError):
    """The store was closed before this call."""


class SchemaMismatchError(StoreError):
    """A collection was written with another model, dimension, setting or schema version."""


class ServerError(StoreError):
    """A Qdrant server refused a request.

    Attributes:
        status: The HTTP status of its answer, or the one that a gRPC code corresponds to; None where there was none.
    """

    status: int | None = None


class ServerUnavailableError(ServerError):
    """A Qdrant server could not be reached, or failed, on every try."""


class UnsupportedServerError(ServerError):
    """A Qdrant server is too old for what was asked."""


class UnreadableFileError(PplxVectorStoreError):
    """A file is binary, empty of text, or needs an extra to be read."""
