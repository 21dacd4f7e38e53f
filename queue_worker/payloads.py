"""A message's payload as its handler sees it: validated, in a version that the handler knows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from queue_worker.errors import ConfigError, InvalidPayload, UnsupportedVersion

_MOST_PARTS = 10


class Payloads:
    """What the payloads of one queue may look like; `options` are those of the decorator (see `PAYLOAD_OPTIONS`).

    `unknown_fields` is `forbid` or `ignore`, whatever the model itself says; `version_field` names the top-level field
    that holds one of `versions`, whether the model declares it or not. Raises ConfigError for what contradicts itself.
    """

    def __init__(self, queue: str, model: Any, options: Mapping[str, Any]) -> None:
        self._adapter: TypeAdapter[Any] = TypeAdapter(model)
        self._extra = _unknown_fields(queue, model, options.get("unknown_fields"))
        self._field, self._versions = _versions(queue, options.get("version_field"), options.get("versions"))

    def parse(self, body: str | bytes | None) -> Any:
        """Validate one payload's JSON text.

        Raises InvalidPayload with the fields that are wrong, not their values, or UnsupportedVersion.
        """
        if body is None:
            raise InvalidPayload("the payload is SQL null")
        try:
            if self._field is not None:
                return self._parse_versioned(body, self._field)
            return self._adapter.validate_json(body, extra=self._extra)
        except ValidationError as error:
            raise InvalidPayload(_explain(error.errors(**_WITHOUT_VALUES))) from None
        except (ValueError, RecursionError) as error:
            raise InvalidPayload(f"the payload cannot be parsed: {type(error).__name__}: {error}") from None

    def _parse_versioned(self, body: str | bytes, field: str) -> Any:
        # Before the model: what an unknown version looks like, nobody here can know.
        data = from_json(body)
        if isinstance(data, dict):
            self._check_version(data.get(field), field)
        try:
            return self._adapter.validate_json(body, extra=self._extra)
        except ValidationError as error:
            if self._extra != "forbid" or not isinstance(data, dict):
                raise
            # The field is known to the queue even if the model does not declare it.
            found = error.errors(**_WITHOUT_VALUES)
            left = [item for item in found if not _is_the_field(item, field, data)]
            if len(left) == len(found):
                raise
            if left:
                raise InvalidPayload(_explain(left)) from None
            return self._adapter.validate_json(body, extra="ignore")

    def _check_version(self, version: Any, field: str) -> None:
        # True == 1 in Python, and not in JSON.
        if any(version == one and isinstance(version, bool) == isinstance(one, bool) for one in self._versions):
            return
        known = ", ".join(map(str, self._versions))
        told = (
            f"version {version!r:.40} in field {field!r}" if version is not None else f"no version in field {field!r}"
        )
        raise UnsupportedVersion(f"{told}; this processor knows {known}")


# The text ends in logs and rows, and a payload may hold secrets.
_WITHOUT_VALUES: Mapping[str, Any] = {"include_url": False, "include_context": False, "include_input": False}


def _is_the_field(item: Any, field: str, data: Mapping[str, Any]) -> bool:
    where = item["loc"]
    if item["type"] != "extra_forbidden" or where[-1] != field:
        return False
    # The members of a union put their name in front; anything else there is a field of the payload.
    return len(where) == 1 or (len(where) == 2 and where[0] not in data)


def _explain(items: Collection[Any]) -> str:
    parts = []
    for item in list(items)[:_MOST_PARTS]:
        where = ".".join(str(step) for step in item["loc"]) or "payload"
        parts.append(f"{where}: {item['msg']}")
    return "; ".join(parts)


def _unknown_fields(queue: str, model: Any, value: Any) -> Literal["forbid", "ignore"] | None:
    if value is None:
        return None
    if value not in ("forbid", "ignore"):
        raise ConfigError(f"processor {queue!r}: unknown_fields must be 'forbid' or 'ignore'")
    if model == dict[str, Any] or model is dict:
        raise ConfigError(f"processor {queue!r}: unknown_fields needs a model, not any dict: annotate job: Job[Model]")
    return "forbid" if value == "forbid" else "ignore"


def _versions(queue: str, field: Any, versions: Any) -> tuple[str | None, tuple[Any, ...]]:
    if field is None and versions is None:
        return None, ()
    if not isinstance(field, str) or not field:
        raise ConfigError(f"processor {queue!r}: versions needs version_field, the name of the payload's field")
    if isinstance(versions, (str, bytes, Mapping)) or not isinstance(versions, Collection) or not versions:
        raise ConfigError(
            f"processor {queue!r}: version_field needs versions, the set of those it knows, such as {{1, 2}}"
        )
    if not all(one is None or isinstance(one, (int, str, float)) for one in versions):
        raise ConfigError(
            f"processor {queue!r}: versions must be numbers or texts (None: a payload without version_field)"
        )
    return field, tuple(sorted(versions, key=str))
