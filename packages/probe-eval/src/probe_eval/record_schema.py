"""What a record must look like: its JSON schema, counts that agree, and the hash of its content."""

import functools
import hashlib
import importlib.resources
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator, ValidationError

SCHEMA_VERSION = 2
SCHEMA_FILE = "record.schema.json"


def check_record(record: Any, name: str) -> None:
    """Checks version, hash, schema and that counts and scores agree.

    Args:
        record: what was read.
        name: of the file, for the message.

    Raises:
        ValueError: one line that says what is wrong, what was expected and what to do.
    """
    _check_version(record, name)
    problem = next(iter(_problems(record)), "")
    found, expected = record.get("sha256"), record_hash(record)
    if found != expected and isinstance(found, str):
        detail = f" ({problem})" if problem else ""
        raise ValueError(
            f"{name} was edited after it was written{detail}: its sha256 is {found[:12]}..., that "
            f"of its content {expected[:12]}...; put the original back, or delete it and run again"
        )
    if problem:
        raise ValueError(f"{name}: {problem}")


def record_hash(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record without its `sha256`, the same however its JSON is laid out."""
    return content_hash({name: value for name, value in record.items() if name != "sha256"})


def _check_version(record: Any, name: str) -> None:
    """Says what to do with a record of another version."""
    version = record.get("schema_version") if isinstance(record, dict) else None
    if type(version) is int and version == SCHEMA_VERSION:
        return
    message = f"{name} has schema version {version!r}, expected {SCHEMA_VERSION}"
    if version == 1:
        message += "; it is of probe-eval 0.3 or older: run the probe again, or keep that version"
    elif type(version) is int and version > SCHEMA_VERSION:
        message += "; it is of a newer probe-eval: update this one"
    else:
        message += "; it is no record of a probe"
    raise ValueError(message)


def _problems(record: dict[str, Any]) -> Iterator[str]:
    """One phrase for each thing that is wrong, first what the schema says."""
    errors = list(_validator().iter_errors(record))
    if errors:
        yield from (_phrase(error) for error in sorted(errors, key=lambda error: error.json_path))
        return
    for name in ("train", "test"):
        split = record["dataset"][name]
        used = split["evaluated"] + split["missing"] + split["failed"]
        if used > split["expected"]:
            yield (
                f"dataset.{name}: evaluated {split['evaluated']} + missing {split['missing']} + "
                f"failed {split['failed']} must be at most expected {split['expected']}"
            )
    metric, measured = record["metric"], record["dataset"]["test"]["evaluated"]
    if metric["samples"] > measured:
        yield (
            f"metric.samples is {metric['samples']}, expected at most dataset.test.evaluated, "
            f"{measured}"
        )
    if record["metrics"].get(metric["name"], metric["value"]) != metric["value"]:
        yield (
            f"metric.value is {metric['value']}, but metrics.{metric['name']} "
            f"{record['metrics'][metric['name']]}"
        )
    if record["split"] == "held-out" and record["held_out"] == 0:
        yield "split is 'held-out', but held_out is 0"


@functools.cache
def _validator() -> "Draft202012Validator":
    from jsonschema import Draft202012Validator

    schema = importlib.resources.files("probe_eval") / SCHEMA_FILE
    return Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))


def _phrase(error: "ValidationError") -> str:
    """What the schema refuses, in words: where, what is there, what was expected."""
    place = error.json_path.removeprefix("$").removeprefix(".")
    value, given = cast(Any, error.instance), cast(Any, error.validator_value)
    rule = str(error.validator)
    if rule == "required":
        lacking = next(name for name in given if name not in value)
        return f"{place or 'the record'} lacks the field {lacking!r}"
    if rule == "additionalProperties":
        known = cast(dict[str, Any], error.schema)["properties"]
        extra = [name for name in value if name not in known]
        return f"{place} has unknown fields {', '.join(extra)}; known: {', '.join(known)}"
    kinds = {"object": "an object", "array": "a list", "integer": "a whole number"}
    expected = {
        "type": lambda: " or ".join(
            kinds.get(kind, f"a {kind}") for kind in ([given] if isinstance(given, str) else given)
        ),
        "const": lambda: repr(given),
        "enum": lambda: "one of " + ", ".join(map(repr, given)),
        "minimum": lambda: f"at least {given}",
        "maximum": lambda: f"at most {given}",
        "exclusiveMaximum": lambda: f"below {given}",
        "pattern": lambda: "64 hexadecimal digits",
        "minLength": lambda: "some text",
        "minItems": lambda: f"{given} items",
        "maxItems": lambda: f"{given} items",
    }
    if rule not in expected:
        return f"{place}: {error.message}"
    shown = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."
    return f"{place} is {shown}, expected {expected[rule]()}"


def fractions(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every fractional number with its place."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from fractions(inner, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from fractions(inner, f"{place}[{index}]")
    elif isinstance(value, float):
        yield place, value


def content_hash(value: Any) -> str:
    """SHA-256 of canonical JSON; 1.0 and 1 are one number, as for programs that know one kind."""

    def canonical(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: canonical(inner) for name, inner in part.items()}
        if isinstance(part, list | tuple):
            return [canonical(inner) for inner in part]
        return int(part) if isinstance(part, float) and part.is_integer() else part

    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
