"""A model behind ``pplx-vectorstore serve``: what it says of itself, and whether that is what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pplx_vectorstore.collection import Fingerprint
from pplx_vectorstore.errors import ApiError, InvalidInputError
from pplx_vectorstore.models import ModelSpec, find_spec

DIGEST_HEADER = "x-pplx-vectorstore-digest"
"""Clients send the digest of the model that they began with, and a server with another model refuses them."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as a server describes it.

    Attributes:
        name: What it is asked for by.
        fingerprint: What its vectors depend on.
        min_dimension: The fewest components that they can be cut to.
        digest: Short form of the fingerprint.
    """

    name: str
    fingerprint: Fingerprint
    min_dimension: int
    digest: str

    @classmethod
    def read(cls, listed: Any, model: str, where: str) -> ServedModel:
        """Find a model in what a server lists.

        Args:
            listed: The answer of ``/v1/models``.
            model: What was asked for.
            where: The server's address, for messages.

        Raises:
            ApiError: It is no such server.
            InvalidInputError: It serves another model.
        """
        entries = listed.get("data") if isinstance(listed, Mapping) else None
        described = [entry for entry in entries or [] if isinstance(entry, Mapping) and "fingerprint" in entry]
        if not described:
            raise ApiError(
                f"{where} does not tell its model's fingerprint, so it is no `pplx-vectorstore serve`; of another "
                "service with this protocol, give the address as api=ApiOptions(base_url=...)"
            )
        try:
            found = [cls._of(entry) for entry in described]
        except (KeyError, TypeError, ValueError) as error:
            raise ApiError(f"{where} describes its model in a way that this version does not know: {error}") from error
        wanted = _canonical(model)
        for one in found:
            if _canonical(one.name) == wanted:
                return one
        names = ", ".join(one.name for one in found)
        raise InvalidInputError(f"{where} serves {names}, not {model!r}")

    @classmethod
    def _of(cls, entry: Mapping[str, Any]) -> ServedModel:
        told = dict(entry["fingerprint"])
        unknown = told.keys() - {field.name for field in fields(Fingerprint)}
        if unknown:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        name = str(entry["id"])
        fingerprint = Fingerprint(**told, source=name, backend="api")
        return cls(name, fingerprint, int(entry["min_dimension"]), str(entry["digest"]))

    def require(self, where: str, **asked: object) -> None:
        """Refuse settings of the fingerprint that differ from the server's; None is any.

        Raises:
            InvalidInputError: Names both.
        """
        for name, value in asked.items():
            own = getattr(self.fingerprint, name)
            if value is not None and value != own:
                raise InvalidInputError(f"{where} serves {self.name} with {name}={own!r}, not {value!r}")

    @property
    def spec(self) -> ModelSpec:
        """How the model is used, as far as a client has to know."""
        told = self.fingerprint
        return ModelSpec(
            name=told.model,
            dimension=told.dimension,
            min_dimension=self.min_dimension,
            quantizer=told.quantizer,  # type: ignore[arg-type]
            window_tokens=told.window_tokens,
            max_window_tokens=told.window_tokens,
            context_weight=told.context_weight,
            layout="pplx" if told.quantizer == "tanh" else "mean-pooled",
            crest_factor=told.crest_factor,
        )


def _canonical(name: str) -> str:
    """Return the name by which a model is known: a folder's is its last part."""
    known = find_spec(name)
    if known is not None:
        return known.name
    folder = Path(name).expanduser()
    return (folder.resolve().name if folder.is_dir() else name).lower()
