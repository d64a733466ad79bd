"""What workers give, and the end of a job, which counts it.

Apart from the workers, whose imports take seconds that the tasks of the end need not spend.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import WriteResult

from ray_pplx_vectorstore.reports import IngestionReport, sum_reports

RESULT = pa.schema([("id", pa.string()), ("report", pa.binary())])
"""Of the rows that a worker gives: one for each document that is stored, and one with the batch's report, pickled.

A checkpoint remembers the ids, so those of failed documents, which are to be tried again, are not among them.
"""
# What the id of a report begins with: a checkpoint needs one, and leaves out a document of the same.
_REPORT_OF = "report of the batch "


def make_result(batch: str, stored: Sequence[str], report: IngestionReport) -> pa.Table:
    """Make the rows of a batch, which has this name, of the ids that are stored and the report."""
    ids = [*stored, _REPORT_OF + batch]
    return pa.table([ids, [*[None] * len(stored), pickle.dumps(report)]], schema=RESULT)


def read_reports(result: pa.Table) -> list[IngestionReport]:
    """Read the reports of batches from the rows that workers gave."""
    if not result.num_rows:  # Ray's own, without columns, where a checkpoint has left no row at all
        return []
    return [pickle.loads(pickled) for pickled in result.column("report").drop_null().to_pylist()]


class CountingDatasink(Datasink[list[IngestionReport]]):
    """The end of a job: all is written already, and only counts come, each once, whatever was done again before.

    Also where Ray notes in its checkpoint what has come through.

    Attributes:
        report: The sum, once the job has ended.
    """

    def __init__(self) -> None:
        self.report = IngestionReport()

    def write(self, blocks: Iterable[Block], ctx: Any) -> list[IngestionReport]:
        """Read the reports of batches."""
        return [report for block in blocks for report in read_reports(BlockAccessor.for_block(block).to_arrow())]

    def on_write_complete(self, write_result: WriteResult[list[IngestionReport]]) -> None:
        """Add them up."""
        self.report = sum_reports(report for reports in write_result.write_returns for report in reports)
