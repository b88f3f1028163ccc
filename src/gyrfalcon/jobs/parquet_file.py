"""Rows of a Parquet file, by pyarrow (extra `parquet`): a row group is read in batches, never whole."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from gyrfalcon.errors import PIP_INSTALL, MissingExtra, UsageError

BATCH_ROWS = 256


def parquet_rows(path: Path, start: int, columns: Sequence[str]) -> Iterator[dict[str, object]]:
    """The rows from number `start` on, with those of the columns that the file has. UsageError for a file
    that cannot be read, and without pyarrow.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingExtra(
            f"pyarrow to read {path} (the extra parquet)",
            "none",
            f"install it: {PIP_INSTALL} 'gyrfalcon[parquet]'",
        ) from None
    try:
        with ParquetFile(path) as file:
            groups, first = [], 0
            skip = start
            for number in range(file.num_row_groups):
                num_rows = file.metadata.row_group(number).num_rows
                if first + num_rows > start:
                    groups.append(number)
                else:
                    skip -= num_rows
                first += num_rows
            known = [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(BATCH_ROWS, groups, known):
                yield from batch.slice(min(skip, len(batch))).to_pylist()
                skip = max(0, skip - len(batch))
    except (ArrowException, OSError, ValueError) as error:  # the last for text that is not UTF-8
        told = str(error).splitlines()[0] if str(error) else "damaged data"
        raise UsageError(f"a Parquet file {path}", told, "write it again") from None


def parquet_names(path: Path) -> list[str]:
    """The names of all columns."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_schema
    except ImportError:
        return []
    try:
        return list(read_schema(path).names)
    except (ArrowException, OSError):
        return []
