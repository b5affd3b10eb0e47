"""JSON Schemas of all published record types, and an AsyncAPI document of the six topics. Pure, except for `main`.

Both are generated from `twinlens.records`, so they always agree with the code. The names of the topics are those of the
default settings; the environment is not read. `python -m twinlens.schemas docs` writes
`docs/schemas/<topic>.schema.json` and `docs/asyncapi.json`. A test fails if these files are out of date.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from twinlens import __version__, records
from twinlens.errors import RefusalReason
from twinlens.records import Record, encode
from twinlens.settings import OUTPUTS, IntakeSettings, Settings, TopicSettings
from twinlens.settings.kafka import KafkaSettings

Schema = dict[str, Any]

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"
TYPES: Final[dict[str, type[Record]]] = {
    "logits": records.LogitsRecord,
    "predictions": records.PredictionRecord,
    "divergences": records.DivergenceRecord,
    "comparisons": records.ComparisonRecord,
}
TOPICS: Final = TopicSettings.model_validate({})
KAFKA: Final = {"bindingVersion": "0.5.0"}

TWEET: Final[Schema] = {
    "title": "Tweet",
    "description": "What twinlens reads, with the default `intake.text_field` and `intake.id_field`. Other fields are "
    "allowed and ignored. With `intake.format: text` the value is plain UTF-8 text instead.",
    "type": "object",
    "properties": {
        "id": {
            "description": "The tweet's id, if it is a string or a number. Otherwise it is `topic/partition/offset`."
        },
        "text": {
            "description": "What both paths classify. It may be empty.",
            "type": "string",
            "maxLength": IntakeSettings().max_text_chars,
        },
    },
    "required": ["text"],
}
TRACEPARENT: Final[Schema] = {
    "type": "string",
    "description": "W3C trace context. Like all other headers of the source record, it is passed on unchanged.",
}
#: Headers that may be on any record, because they are passed on from the source record.
PASSED_HEADERS: Final[dict[str, Schema]] = {
    "traceparent": TRACEPARENT,
    "twinlens.replayed_from": {
        "type": "string",
        "description": "Only if `twinlens dlq replay` put a dead letter back: where that letter is.",
        "pattern": "/[0-9]+/[0-9]+$",
    },
}
SOURCE_KEY: Final[Schema] = {"type": ["string", "null"], "description": "The source record's key: any bytes, or null."}
#: Headers that `replica.outputs` adds to a dead letter. Kafka headers are bytes; these are UTF-8 text.
DEAD_LETTER_HEADERS: Final[dict[str, Schema]] = {
    "twinlens.reason": {"enum": [str(reason) for reason in RefusalReason], "description": "Why it was refused."},
    "twinlens.detail": {"description": "The reason as text for people; it never quotes the tweet."},
    "twinlens.source.topic": {"description": "Where the record was read: topic."},
    "twinlens.source.partition": {"description": "Where the record was read: partition.", "pattern": "^[0-9]+$"},
    "twinlens.source.offset": {"description": "Where the record was read: offset.", "pattern": "^[0-9]+$"},
    "twinlens.source.timestamp_ms": {"description": "The source record's timestamp.", "pattern": "^-?[0-9]+$"},
    "twinlens.refused_at_ms": {"description": "Wall clock when the transaction began.", "pattern": "^[0-9]+$"},
    "twinlens.application": {"description": "The setting `application`."},
}
CUT_HEADER: Final[dict[str, Schema]] = {
    "twinlens.cut_from_bytes": {"description": "Only if the value was cut: its original length.", "pattern": "^[0-9]+$"}
}


def example_records() -> dict[str, Record]:
    """One example of each output type, by topic: one tweet of the demo, on the demo's model, with `raw.max_length` 16.

    The raw path cuts the text, and the labels differ.
    """
    model = records.ModelId("demo-model", "88383da6c769")
    place = records.SourceCoordinates("tweets", 3, 1042)
    shared: dict[str, Any] = {"id": "70", "source": place, "application": "twinlens"}
    raw, predict = _example_views()
    logits = records.LogitsRecord(
        **shared, model=model, labels=["negative", "neutral", "positive"], logits=raw.logits or [], function="softmax",
        token_count=raw.token_count, truncated=raw.truncated, batch=raw.batch,
    )  # fmt: skip
    shown: dict[str, Any] = {"label": predict.label, "score": predict.score, "batch": predict.batch}
    prediction = records.PredictionRecord(**shared, model=model, **shown)
    divergence = records.DivergenceRecord(
        **shared, verdict=records.Verdict.LABEL, cause=records.Cause.TRUNCATION,
        certainty=records.Certainty.CONSISTENT, raw=raw, predict=predict, tolerance=0.005, score_delta=0.0438,
        margin=1.8487, logits_delta=2.1895,
        text="There are over 11,000 emails in my inbox. O thinly its time for some cleaning.",
    )  # fmt: skip
    examples = (logits, prediction, divergence, _example_comparison(model))
    return dict(zip(TOPICS.outputs, examples, strict=False))


def _example_views() -> tuple[records.PathView, records.PathView]:
    batch = records.BatchProvenance(
        replica="twinlens-x7k2", window="twinlens-x7k2-57", size=8, padded_tokens=16, dtype="float32", device="cpu"
    )
    raw = records.PathView(
        label="neutral", score=0.8093, logits=[-0.3087, 1.54, -1.0079], token_count=16, truncated=True,
        ids_digest="eae66ff428a9a9c5", batch=batch,
    )  # fmt: skip
    predict = records.PathView(
        label="negative", score=0.8531, logits=[1.8808, -0.1176, -1.4254], token_count=25,
        ids_digest="397b3ca63235280c", batch=msgspec.structs.replace(batch, padded_tokens=27),
    )  # fmt: skip
    return raw, predict


def _example_comparison(model: records.ModelId) -> records.ComparisonRecord:
    tally = records.Tally(tweets=40, label=1, score=1)
    labels = {"negative": {"negative": 12}, "neutral": {"negative": 1, "neutral": 14}, "positive": {"positive": 13}}
    return records.ComparisonRecord(
        application="twinlens", replica="twinlens-x7k2", window="twinlens-x7k2-57", source_topic="tweets",
        source_partition=3, first_offset=1021, last_offset=1062, published_at_ms=1767225600000, raw_model=model,
        predict_model=model, tally=tally, refused={"not_json": 1}, labels=labels, by_length={"<=16": tally},
        causes={"truncation": 2}, score_delta={-805: 38, -231: 1, -156: 1}, latency_s={-80: 30, -70: 11},
        batch_sizes={8: 5}, tokens=600, padded_tokens=640, compute_s=0.13, tolerance=0.005,
    )  # fmt: skip


def json_schemas() -> dict[str, Schema]:
    """JSON Schemas by topic. Dead letters have none: their values are what could not be read."""
    schemas = {TOPICS.input: {"$schema": DRAFT, **TWEET}}
    for name, record in TYPES.items():
        components = _components([record], "#/$defs/{name}")
        root = components.pop(record.__name__)
        schemas[getattr(TOPICS, name)] = {"$schema": DRAFT, **root, "$defs": components}
    return schemas


def asyncapi() -> Schema:
    """The AsyncAPI 3.0 document: topics, the operations of the application, messages, keys, headers."""
    kafka = KafkaSettings()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "twinlens",
            "version": __version__,
            "description": "Reads tweets, publishes the results of a model's call and of its pipeline for each tweet, "
            "and reports where they differ. A window's records and its source offsets are one Kafka transaction: read "
            "with `isolation.level=read_committed`. Readers must ignore unknown fields. A field that has its default "
            "value is left out.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": JSON,
        "servers": {"default": {"host": kafka.bootstrap_servers, "protocol": "kafka"}},
        "channels": {name: _channel(name) for name in ("input", *OUTPUTS)},
        "operations": {
            "receive_input": _operation("receive", "input", Settings.model_fields["application"].default),
            **{f"send_{name}": _operation("send", name) for name in OUTPUTS},
        },
        "components": {
            "messages": _messages(),
            "schemas": {**_components(list(TYPES.values()), "#/components/schemas/{name}"), "Tweet": TWEET},
        },
    }


def _channel(name: str) -> Schema:
    address = getattr(TOPICS, name)
    outputs = "Co-partitioned with the input: partition p has the results for the input's partition p, in order."
    return {
        "address": address,
        "description": "The input topic." if name == "input" else outputs,
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "bindings": {"kafka": {"topic": address, **KAFKA}},
    }


def _operation(action: str, name: str, group: str | None = None) -> Schema:
    messages = [{"$ref": f"#/channels/{name}/messages/{name}"}]
    operation: Schema = {"action": action, "channel": {"$ref": f"#/channels/{name}"}, "messages": messages}
    if group is not None:
        schema = {"type": "string", "default": group, "description": "`kafka.group_id`, or `application` if unset."}
        operation["bindings"] = {"kafka": {"groupId": schema, **KAFKA}}
    return operation


def _messages() -> Schema:
    passed = {"type": "object", "properties": PASSED_HEADERS}
    examples = {topic: json.loads(encode(record)) for topic, record in example_records().items()}
    tweet = {"id": "70", "text": examples[TOPICS.divergences]["text"]}
    tweet_ref = {"$ref": "#/components/schemas/Tweet"}
    messages = {"input": _message("Tweet", tweet_ref, passed, SOURCE_KEY, payload=tweet)}
    for name, record in TYPES.items():
        ref = {"$ref": f"#/components/schemas/{record.__name__}"}
        messages[name] = _message(record.__name__, ref, passed, SOURCE_KEY, payload=examples[getattr(TOPICS, name)])
    # A comparison covers many source records, so it has neither their keys nor their headers.
    place = {"type": "string", "description": "`<source topic>/<source partition>`", "pattern": "/[0-9]+$"}
    messages["comparisons"]["bindings"]["kafka"]["key"] = place
    del messages["comparisons"]["headers"], messages["comparisons"]["examples"][0]["headers"]
    messages["dlq"] = _dead_letter()
    return messages


def _message(name: str, payload_schema: Schema, headers: Schema, key: Schema, payload: Any) -> Schema:
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    return {
        "name": name,
        "contentType": JSON,
        "headers": headers,
        "payload": payload_schema,
        "bindings": {"kafka": {"key": key, **KAFKA}},
        "examples": [{"headers": trace, "payload": payload}],
    }


def _dead_letter() -> Schema:
    added = {name: {"type": "string", **schema} for name, schema in DEAD_LETTER_HEADERS.items()}
    headers = {
        "type": "object",
        "properties": {**PASSED_HEADERS, **added, **CUT_HEADER},
        "required": list(added),
    }
    value = {"description": "The bytes of the refused record, cut if the header `twinlens.cut_from_bytes` is there."}
    message = _message("DeadLetter", value, headers, SOURCE_KEY, payload='{"id": "71", "text": "half of it')
    detail = "Unterminated string starting at: line 1 column 22 (char 21)"
    values = ("not_json", detail, "tweets", "3", "1043", "1767225599000", "1767225600000", "twinlens")
    message["examples"][0]["headers"].update(zip(DEAD_LETTER_HEADERS, values, strict=True))
    return {**message, "contentType": BYTES}


def _components(types: list[type[Record]], template: str) -> dict[str, Schema]:
    """Schemas, by name, of `types` and the types they use. The `#:` notes of the fields become descriptions."""
    _, components = msgspec.json.schema_components(types, ref_template=template)
    for name, schema in components.items():
        schema["description"] = inspect.cleandoc(schema["description"])
        source = inspect.getsource(getattr(records, name))
        for field, note in re.findall(r"^    (\w+): .*?#: (.+)$", source, re.MULTILINE):
            schema["properties"][field]["description"] = note
    return components


def main(arguments: list[str]) -> None:
    """Write all documents into the folder that the only argument names."""
    if len(arguments) != 1:
        sys.exit("usage: python -m twinlens.schemas FOLDER")
    for path, document in documents().items():
        target = Path(arguments[0]) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(document)


def documents() -> dict[str, str]:
    """What `main` writes: path in the folder -> text."""
    files = {f"schemas/{topic}.schema.json": schema for topic, schema in json_schemas().items()}
    files["asyncapi.json"] = asyncapi()
    return {path: json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n" for path, body in files.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
