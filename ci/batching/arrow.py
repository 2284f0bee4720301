"""Names for what pyarrow, which has no type information, gives and takes: it is checked at run time."""

from __future__ import annotations

from typing import Any

import pyarrow.compute

Table = Any  # pyarrow.Table
Batch = Any  # pyarrow.RecordBatch
Values = Any  # pyarrow.ChunkedArray or Array
Schema = Any  # pyarrow.Schema
Field = Any  # pyarrow.Field
DataType = Any  # pyarrow.DataType

pc: Any = pyarrow.compute
