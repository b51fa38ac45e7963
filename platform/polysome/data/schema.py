"""The Arrow tables that pass between the steps of data preparation, declared once."""

import pyarrow as pa

EXAMPLES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("subset", pa.string()),
        pa.field("sequences", pa.list_(pa.string()), nullable=False),
        pa.field("label", pa.list_(pa.float64())),
        pa.field("question", pa.string()),
        pa.field("answer", pa.string()),
    ]
)
"""One record (XP-1): `sequences` in the order of the spec's molecules; `label` as the task's codec decodes it, null in
a corpus and for generated text.

`id` is `<dataset>/<split>/<subset or ->/<record number>`, and `/<piece>` after it where a corpus record was windowed.
`question` and `answer` are the wordings that came with the record, molecules as placeholders; null: chosen from the
task's templates.
"""

QUARANTINE = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("record", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""One record that was set aside: `record` counts from 0 within its file, `offset` is its byte in the decompressed
content, -1 where the format has none or the record itself was readable."""

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


PACKED = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("lengths", pa.list_(pa.int32()), nullable=False),
        pa.field("target_starts", pa.list_(pa.int32()), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("targets", pa.int32(), nullable=False),
        pa.field("documents", pa.int32(), nullable=False),
    ]
)
"""One row: whole documents one after the other, without padding. `lengths` and `target_starts` are those of its
documents; `tokens` is the sum of the lengths, `targets` counts the positions that are trained on, `documents` the
documents.

Labels, positions, segments and padding follow from it exactly; `polysome.data.rows.expand` makes them.
"""
