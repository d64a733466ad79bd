"""Bytes ↔ requests and answers: the protocol of the hosted API, without HTTP around it and without a model behind."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import orjson

from pplx_vectorstore.documents import is_blank
from pplx_vectorstore.quantization import Codes, Floats, norms, pack_bits

DEFAULT_ENCODING = "base64_int8"
PART_BYTES = 262_144
"""About what answers are written in: milliseconds during which no other thread runs."""

_FIELDS = {"input", "model", "dimensions", "encoding_format", "user"}
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
_TOKEN_IDS = (
    "input must be text, not token ids: the ids are of another model's tokenizer. In langchain-openai, set "
    "check_embedding_ctx_length=False"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask for at most; by default what the hosted service documents.

    Attributes:
        body_bytes: Bytes of its body.
        documents: Documents, or texts where each is embedded on its own.
        chunks: Chunks of all documents.
        document_tokens: Tokens of a document.
        request_tokens: Tokens of all documents.
    """

    body_bytes: int = 32_000_000
    documents: int = 512
    chunks: int = 16_000
    document_tokens: int = 32_000
    request_tokens: int = 120_000


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What clients are told of the model, and may ask of it.

    Attributes:
        name: Its canonical name.
        names: Names that it answers to, in lower case.
        contextual: Whether it embeds chunks in the context of their document.
        dimension: Components of its vectors.
        min_dimension: The fewest that they can be cut to.
        fingerprint: What the vectors depend on, by field.
        digest: Short form of that.
        created: When it was loaded, in seconds since 1970.
    """

    name: str
    names: frozenset[str]
    contextual: bool
    dimension: int
    min_dimension: int
    fingerprint: Mapping[str, Any]
    digest: str
    created: int


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A request that is well formed and within the limits, but for its tokens, which nobody has counted yet.

    Attributes:
        model: The name that it asked for.
        documents: The chunks of each document; a text of ``/v1/embeddings`` is a document of one chunk.
        nested: Whether its answer nests document → chunk.
        dimensions: Components of the vectors that it wants.
        encoding: How it wants them, one of `ENCODINGS`.
    """

    model: str
    documents: list[list[str]]
    nested: bool
    dimensions: int
    encoding: str

    @property
    def n_chunks(self) -> int:
        """Chunks of all documents."""
        return sum(map(len, self.documents))

    @property
    def characters(self) -> int:
        """Characters of all chunks."""
        return sum(len(chunk) for document in self.documents for chunk in document)

    @property
    def entry_bytes(self) -> int:
        """About how large a chunk's entry in the answer will be."""
        return 64 + math.ceil(self.dimensions * ENCODINGS[self.encoding].bytes_per_component)

    @property
    def answer_bytes(self) -> int:
        """About how large the answer will be."""
        return self.n_chunks * self.entry_bytes


class RefusalError(Exception):
    """A request is not answered as it is.

    Args:
        status: Of HTTP.
        message: What was expected, what came, and the way out; never any of the request's text.
        param: The field of the request that it is about.
        headers: To go with the answer.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Return the answer's JSON."""
        type_ = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "internal_server_error")
        error = {"message": self.message, "type": type_, "code": self.status, "param": self.param}
        return orjson.dumps({"error": error})


@dataclass(frozen=True, slots=True)
class _Encoding:
    """How vectors are written: all at once, then each."""

    prepare: Callable[[Codes], np.ndarray[Any, Any]]
    write: Callable[[np.ndarray[Any, Any]], Any]
    bytes_per_component: float


def _base64(row: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(row.tobytes()).decode("ascii")


def to_unit_norm(codes: Codes) -> Floats:
    """Bring codes to norm 1: float32, same shape; the zero vector stays zero."""
    length = norms(codes)[..., None]
    return np.divide(codes, length, out=np.zeros(codes.shape), where=length > 0).astype(np.float32)


ENCODINGS = {
    "base64_int8": _Encoding(lambda codes: codes, _base64, 4 / 3),
    # numpy's bits have the most significant first unless told otherwise; the protocol's the least.
    "base64_binary": _Encoding(lambda codes: pack_bits(codes, "little"), _base64, 1 / 6),
    "base64": _Encoding(lambda codes: to_unit_norm(codes).astype("<f4"), _base64, 16 / 3),
    "float": _Encoding(to_unit_norm, lambda row: row, 12.0),
}


def read_request(
    body: bytes | bytearray, model: ServedModel, limits: Limits, *, nested: bool, unset_encoding: str = DEFAULT_ENCODING
) -> EmbeddingRequest:
    """Read and check a request's body.

    Args:
        body: As it came.
        model: The one that is served.
        limits: What may be asked for.
        nested: Whether ``input`` is a list of documents, each a list of chunks; else a text or a list of texts.
        unset_encoding: How vectors are written where the request does not say.

    Raises:
        RefusalError: 400 for a wrong value, 422 for a wrong type.
    """
    most_nested = limits.documents + limits.chunks
    # In text these are characters as others; they are looked at closely only where there are many.
    if sum(map(body.count, (b"[", b"{", b":"))) > most_nested and _count_nested(body) > most_nested:
        _refuse(400, f"the body must have at most {most_nested} arrays, objects and fields")
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        # What orjson says quotes nothing, but tells places within the text.
        _refuse(400, "the body is not valid JSON in UTF-8")
    if not isinstance(content, dict):
        _refuse(422, "the body must be a JSON object")
    unknown = next((name for name in content if name not in _FIELDS), None)
    if unknown is not None:
        _refuse(422, f"unknown field {_quoted(unknown)}; the fields are {', '.join(sorted(_FIELDS))}")
    for name in ("input", "model"):
        if name not in content:
            _refuse(422, f"{name} is required", name)
    asked = _typed(content, "model", str, "a string")
    if asked.lower() not in model.names:
        _refuse(400, f"this server has no model {_quoted(asked)}; it serves {model.name!r}", "model")
    if nested and not model.contextual:
        _refuse(400, f"{model.name!r} is not a contextual model; ask /v1/embeddings", "model")
    dimensions = _read_dimensions(content, model)
    encoding = _typed(content, "encoding_format", str, "a string", unset_encoding)
    if encoding not in ENCODINGS:
        _refuse(400, f"encoding_format must be one of {', '.join(ENCODINGS)}", "encoding_format")
    _typed(content, "user", str, "a string", None)
    documents = _read_documents(content["input"]) if nested else [[text] for text in _read_texts(content["input"])]
    _check_documents(documents, limits)
    return EmbeddingRequest(asked, documents, nested, dimensions, encoding)


def write_answer(request: EmbeddingRequest, codes: Sequence[Codes], tokens: int) -> list[bytes]:
    """Write the answer to a request.

    Args:
        request: What was asked.
        codes: For each document int8, shape (n_chunks, dimensions).
        tokens: Of all documents.

    Returns:
        The JSON, in parts of `PART_BYTES` or so. Written as one, hundreds of megabytes would stop all other threads
        for seconds.
    """
    return list(_join(_write_pieces(request, codes, tokens)))


def _write_pieces(request: EmbeddingRequest, codes: Sequence[Codes], tokens: int) -> Iterator[bytes]:
    yield b'{"object":"list","data":['
    if request.nested:
        for index, of in enumerate(codes):
            yield b'%s{"object":"list","index":%d,"data":[' % (b"," if index else b"", index)
            yield from _write_entries(request, of)
            yield b"]}"
    else:
        yield from _write_entries(request, np.concatenate(codes))
    # Clients that find no cost reckon it by the hosted service's price list.
    cost = {"input_cost": 0.0, "total_cost": 0.0, "currency": "USD"}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "cost": cost}
    yield b"]," + orjson.dumps({"model": request.model, "usage": usage})[1:]


def _write_entries(request: EmbeddingRequest, codes: Codes) -> Iterator[bytes]:
    encoding = ENCODINGS[request.encoding]
    rows_each = max(1, PART_BYTES // request.entry_bytes)
    for start in range(0, len(codes), rows_each):
        entries = [
            {"object": "embedding", "index": index, "embedding": encoding.write(row)}
            for index, row in enumerate(encoding.prepare(codes[start : start + rows_each]), start)
        ]
        yield (b"," if start else b"") + orjson.dumps(entries, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def _join(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join pieces to parts of `PART_BYTES` at least, but for the last."""
    part: list[bytes] = []
    size = 0
    for piece in pieces:
        part.append(piece)
        size += len(piece)
        if size >= PART_BYTES:
            yield b"".join(part)
            part, size = [], 0
    if part:
        yield b"".join(part)


def write_model(model: ServedModel) -> dict[str, Any]:
    """Describe the model, as an entry of ``/v1/models``."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "pplx-vectorstore",
        "dimension": model.dimension,
        "min_dimension": model.min_dimension,
        "contextual": model.contextual,
        "fingerprint": dict(model.fingerprint),
        "digest": model.digest,
    }


def check_tokens(counts: Sequence[int], limits: Limits) -> None:
    """Refuse too many tokens.

    Args:
        counts: Tokens of each document.
        limits: What may be asked for.

    Raises:
        RefusalError: Names the document, in words by which clients know to send less.
    """
    longest = max(counts)
    for what, count, most in (
        (f"Item {counts.index(longest)} of the input", longest, limits.document_tokens),
        ("The input", sum(counts), limits.request_tokens),
    ):
        if count > most:
            _refuse(400, f"{what} has {count} tokens, which exceeds the maximum of {most} tokens", "input")


def refuse_more_tokens(what: str, tokens: int, most: int) -> NoReturn:
    """Refuse what has so many tokens already that the rest was not counted.

    Raises:
        RefusalError: In the same words.
    """
    _refuse(400, f"{what} has more than {tokens} tokens, which exceeds the maximum of {most} tokens", "input")


def _count_nested(body: bytes | bytearray) -> int:
    """Count the arrays, objects and fields of JSON, without reading it: millions of them take minutes."""
    # Escaped quotes end no string; pairs of backslashes go first, as they escape nothing.
    text = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    is_within_text = np.logical_xor.accumulate(text == ord('"'))
    is_nested = (text == ord("[")) | (text == ord("{")) | (text == ord(":"))
    return int(np.count_nonzero(is_nested & ~is_within_text))


def _read_dimensions(content: dict[str, Any], model: ServedModel) -> int:
    dimensions: int | None = _typed(content, "dimensions", int, "an integer", None)
    if dimensions is None:
        return model.dimension
    if not model.min_dimension <= dimensions <= model.dimension:
        is_fixed = model.min_dimension == model.dimension
        allowed = f"{model.dimension}" if is_fixed else f"from {model.min_dimension} to {model.dimension}"
        _refuse(400, f"dimensions must be {allowed} with {model.name}, not {dimensions}", "dimensions")
    return dimensions


def _read_texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not _are(texts, str):
        if _are(texts, int) or (isinstance(texts, list) and all(_are(text, int) and text for text in texts)):
            _refuse(422, _TOKEN_IDS, "input")
        _refuse(422, "input must be a string or an array of strings", "input")
    return texts


def _read_documents(value: Any) -> list[list[str]]:
    if not (isinstance(value, list) and all(_are(document, str) for document in value)):
        if isinstance(value, list) and value and all(_are(document, int) and document for document in value):
            _refuse(422, _TOKEN_IDS, "input")
        _refuse(422, "input must be an array of arrays of strings: for each document its chunks", "input")
    return value


def _check_documents(documents: Sequence[Sequence[str]], limits: Limits) -> None:
    if not documents:
        _refuse(400, "input must not be empty", "input")
    if not all(documents):
        _refuse(400, "input must not have an empty document", "input")
    if len(documents) > limits.documents:
        _refuse(400, f"input must have at most {limits.documents} items, not {len(documents)}", "input")
    n_chunks = sum(map(len, documents))
    if n_chunks > limits.chunks:
        _refuse(400, f"input must have at most {limits.chunks} chunks in all, not {n_chunks}", "input")
    if any(is_blank(chunk) for document in documents for chunk in document):
        _refuse(400, "input must not have an empty or blank string", "input")


_REQUIRED = object()


def _typed(content: dict[str, Any], name: str, kind: type, what: str, default: Any = _REQUIRED) -> Any:
    """Return a field's value, or the default where it is not set, or null."""
    value = content.get(name)
    if value is None and default is not _REQUIRED:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        _refuse(422, f"{name} must be {what}", name)
    return value


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def _quoted(name: str) -> str:
    """Show a name that came from a client, or its beginning."""
    return repr(name if len(name) <= 100 else f"{name[:100]}…")


def _refuse(status: int, message: str, param: str | None = None) -> NoReturn:
    raise RefusalError(status, message, param)


def accepted_names(names: Iterable[str]) -> frozenset[str]:
    """Return the names in lower case, with those of an organisation also without it.

    >>> sorted(accepted_names(["Perplexity-AI/pplx-embed-v1-4b"]))
    ['perplexity-ai/pplx-embed-v1-4b', 'pplx-embed-v1-4b']
    """
    lower = [name.lower() for name in names]
    return frozenset(lower) | {name.rpartition("/")[2] for name in lower}
