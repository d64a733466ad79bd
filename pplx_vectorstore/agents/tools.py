"""Tools: what an agent may call, with the arguments that each takes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from pplx_vectorstore.errors import InvalidInputError

if TYPE_CHECKING:
    from pplx_vectorstore.agents.answers import Answer
    from pplx_vectorstore.progress import CountsBytes


def _parsed(given: Any) -> Any:
    """Return the object that a text spells as JSON, which is how some clients send objects."""
    if isinstance(given, str):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(given)
    return given


JsonObject = Annotated[dict[str, Any], BeforeValidator(_parsed)]
"""An object, or a text that spells one."""


class Arguments(BaseModel):
    """What a tool takes; unknown arguments are refused, so that a misspelled filter does not go unheeded."""

    model_config = ConfigDict(extra="forbid")


class Progress:
    """Where a tool tells how far it is.

    Attributes:
        size: What knows how many bytes were read of how many; None until something does.
    """

    size: CountsBytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """Something that an agent may call.

    Attributes:
        name: What it is called by.
        description: What an agent reads to know when and how to call it.
        arguments: What it takes.
        run: Does it, in a thread; raises errors of ours.
        writes: Whether it changes the index.
    """

    name: str
    description: str
    arguments: type[Arguments]
    run: Callable[[Any, Progress], Answer]
    writes: bool = False

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the arguments."""
        schema: dict[str, Any] = _without_titles(self.arguments.model_json_schema())
        del schema["description"]  # that of the class
        return schema

    def check(self, given: Mapping[str, Any]) -> Arguments:
        """Check arguments; null, which some clients send for what they leave out, is as if it was left out.

        Raises:
            InvalidInputError: Names each that is wrong, and what was expected.
        """
        try:
            known = self.arguments.model_fields
            return self.arguments.model_validate(
                {name: value for name, value in given.items() if value is not None or name not in known}
            )
        except ValidationError as error:
            wrong = [
                f"there is no argument {problem['loc'][0]!r} (there are: {', '.join(known) or 'none'})"
                if problem["type"] == "extra_forbidden"
                else f"{'.'.join(map(str, problem['loc'])) or 'arguments'}: {problem['msg']}"
                for problem in error.errors(include_url=False, include_context=False)
            ]
            raise InvalidInputError(f"{self.name}: {'; '.join(wrong)}") from None


def _without_titles(schema: Any) -> Any:
    """Drop what pydantic makes of names, which tells an agent nothing."""
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _without_titles(value) for name, value in item.items()}
        if key == "properties"
        else _without_titles(item)
        for key, item in schema.items()
        if key != "title"
    }
