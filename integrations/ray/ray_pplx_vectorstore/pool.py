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
        num_cpus: CPUs of each; None for 1, if that leaves one for reading.
        batch_size: Rows of a batch.

    Raises:
        InvalidInputError: A number is out of range, or all CPUs would be taken.
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
        if self.num_cpus is None:
            self._leave_a_cpu()

    def _leave_a_cpu(self) -> None:
        """Refuse to take every CPU: nothing would be read, and the job would wait for itself."""
        if not ray.is_initialized():
            ray.init()
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # it has no types
        if self.workers * self.num_gpus > there.get("GPU", 0.0):
            return  # the cluster has to grow first
        cpus = there.get("CPU", 0.0)
        if self.workers > cpus - 1:
            raise InvalidInputError(
                f"{self.workers} workers of one CPU each leave none of the cluster's {cpus:g} for reading: take fewer, "
                "or give num_cpus, such as 0.5, for what Ray counts as taken by each. On a cluster that grows, give "
                "num_cpus=1"
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
