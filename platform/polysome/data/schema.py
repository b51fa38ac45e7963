"""The Arrow tables that pass between the steps of data preparation, declared once."""

import pyarrow as pa

EXAMPLES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("subset", pa.string()),
        pa.field("sequences", pa.list_(pa.string()), nullable=False),
        pa.field("label", pa.float64()),
    ]
)
"""One record: `sequences` in the order of the spec's molecules; `label` 1/0, class index or number, null in a corpus.

`id` is `<dataset>/<split>/<subset or ->/<record number>`, and `/<piece>` after it where a corpus record was windowed.
"""

QUARANTINE = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("record", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""One record that was set aside: `record` counts from 0 within its file."""

TOKENS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("target_start", pa.int32(), nullable=False),
    ]
)
"""One document: the loss is on `input_ids[target_start:]`; a document's first token is never a target."""

IGNORED = -100
"""Label of a position that is not trained on (the convention of torch's cross-entropy)."""


def packed(max_length: int) -> pa.Schema:
    """One row of `max_length` positions that holds whole documents.

    `labels` are aligned with `input_ids` (the model shifts) and `IGNORED` where not trained on; `segment_ids` count
    documents from 1, 0 is padding; `position_ids` restart at 0 in each document. `tokens` counts positions that are
    not padding, `targets` the labels that are trained on.
    """
    row = pa.list_(pa.int32(), max_length)
    names = ("input_ids", "labels", "position_ids", "segment_ids")
    fields = [pa.field(name, row, nullable=False) for name in names]
    fields += [pa.field(name, pa.int32(), nullable=False) for name in ("documents", "tokens", "targets")]
    return pa.schema(fields)
