"""A JSON value that a model is still writing, as changes: read, followed and passed on.

Every character is looked at once, so that a token costs the same at the end of a long answer as at
its beginning.
"""

from __future__ import annotations

from flask_llmstream.sansio.jsondelta.document import JsonDocument, apply_delta
from flask_llmstream.sansio.jsondelta.iterators import JsonDeltas, Snapshot, Snapshots, json_deltas, snapshots
from flask_llmstream.sansio.jsondelta.options import JsonOptions
from flask_llmstream.sansio.jsondelta.patch import JsonPatcher, to_json_patch
from flask_llmstream.sansio.jsondelta.reader import JsonReader
from flask_llmstream.sansio.jsondelta.schema import OutputSchema, make_schema
from flask_llmstream.sansio.jsondelta.stage import JsonStage, make_options

__all__ = [
    "JsonDeltas",
    "JsonDocument",
    "JsonOptions",
    "JsonPatcher",
    "JsonReader",
    "JsonStage",
    "OutputSchema",
    "Snapshot",
    "Snapshots",
    "apply_delta",
    "json_deltas",
    "make_options",
    "make_schema",
    "snapshots",
    "to_json_patch",
]
