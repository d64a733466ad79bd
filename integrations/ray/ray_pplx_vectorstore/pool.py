"""Workers of a job, and what of the cluster they take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset

from pplx_vectorstore.errors import InvalidInputError

DEFAULT_BATCH_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """As many actors as were asked for.

    Attributes:
        workers: How many.
        num_gpus: GPUs of each.
        num_cpus: CPUs of each; None for 1.
        batch_size: Rows of a batch.

    Raises:
        InvalidInputError: A number is out of range.
    """

    workers: int
    num_gpus: float
    num_cpus: float | None
    batch_size: int

    def __post_init__(self) -> None:
        for name in ("workers", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidInputError(f"{name} must be a whole number of at least 1, not {value!r}")
        for name in ("num_gpus", "num_cpus"):
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (is_number and 0 <= value < math.inf) and not (value is None and name == "num_cpus"):
                raise InvalidInputError(f"{name} must be a number of at least 0, not {value!r}")

    def require_room_for_reading(self, ds: Dataset) -> None:
        """Refuse to take all CPUs of a cluster: nothing would be read, and the job would wait for itself.

        Raises:
            InvalidInputError: It has too few, unless it has to grow for this job anyway.
        """
        if not ray.is_initialized():
            ray.init()
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # it has no types
        cpus = there.get("CPU", 0.0)
        taken = self.workers * (1 if self.num_cpus is None else self.num_cpus)
        lacks_gpus = self.workers * self.num_gpus > there.get("GPU", 0.0)
        grows = lacks_gpus or (self.num_cpus is not None and taken > cpus)
        reading = 1 if ds.context.checkpoint_config is None else 2  # what filters by a checkpoint takes another
        if taken > cpus - reading and not grows:
            raise InvalidInputError(
                f"{self.workers} workers take {taken:g} of the cluster's {cpus:g} CPUs, but reading needs {reading}: "
                "have fewer workers, or give num_cpus, down to 0, for what Ray counts as taken by each. On a cluster "
                "that grows, give num_cpus=1"
            )

    def repartition(self, ds: Dataset) -> Dataset:
        """Cut a dataset into blocks of one batch each: readers make larger ones, whatever they are told."""
        return ds.repartition(target_num_rows_per_block=self.batch_size)

    def map(self, ds: Dataset, worker: type, arguments: tuple[Any, ...]) -> Dataset:
        """Have the workers map the batches of a dataset, as Arrow tables."""
        return ds.map_batches(
            worker,
            batch_size=self.batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=self.workers),
            fn_constructor_args=arguments,
            **self._resources(),
        )

    def remote(self, function: Callable[..., Any]) -> Any:
        """Return a function as a task that runs where a worker could."""
        return ray.remote(**self._resources())(function)

    def _resources(self) -> dict[str, Any]:
        resources: dict[str, Any] = {"num_cpus": 1 if self.num_cpus is None else self.num_cpus}
        return resources | ({"num_gpus": self.num_gpus} if self.num_gpus else {})
