"""The OpenAPI document of one model's POST /predict, and a Swagger page that needs no network.

BentoML's own document does not show a mounted route, and its page loads a script from a third party; this one uses
only the Swagger files that BentoML ships.
"""

from __future__ import annotations

import html
from functools import cache
from pathlib import Path
from typing import Any

from bentos.ranking import MOST_ITEMS
from bentos.schema import Column, ServingSpec

ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}

_ERRORS = {
    400: "The body is not valid JSON.",
    413: "The body is larger than the model takes.",
    422: "A field is missing, unknown or of the wrong type; `detail` names each.",
    500: "The model failed, or gave no finite number.",
    503: "Overloaded: try again after `Retry-After` seconds.",
    504: "The model took longer than its time limit.",
}
_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "error": {"type": "string"},
        "detail": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"loc": {"type": "array", "items": {}}, "msg": {"type": "string"}},
            },
        },
        "request_id": {"type": "string"},
    },
}


def document(spec: ServingSpec, version: int, environment: str, example: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI 3.0 document; `example` is a body that the model accepts."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    plain = {"responses": {"200": {"description": "OK"}}}
    return {
        "openapi": "3.0.3",
        "info": {
            "title": spec.model,
            "version": str(version),
            "description": f"Version {version} of the {spec.task} model `{spec.model}`, environment "
            f"`{environment or 'none'}`. Artifact sha256 `{spec.sha256}`.",
        },
        "servers": [{"url": "."}],
        "paths": {
            "/predict": {
                "post": {
                    "summary": "Recommend items" if spec.task == "ranking" else "Predict",
                    "operationId": "predict",
                    "tags": ["model"],
                    "parameters": [
                        {
                            "name": "x-request-id",
                            "in": "header",
                            "description": "Kept in the prediction log and sent back; made up when it is not given.",
                            "schema": {"type": "string", "maxLength": 128},
                        }
                    ],
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": _request(spec), "example": example}},
                    },
                    "responses": {
                        "200": {
                            "description": "Predictions in the order of the input.",
                            "content": {"application/json": {"schema": _response(spec)}},
                        },
                        **{str(code): {"description": text, "content": error} for code, text in _ERRORS.items()},
                    },
                }
            },
            "/livez": {"get": {"summary": "The process lives", "tags": ["platform"], **plain}},
            "/readyz": {"get": {"summary": "The model is verified and answers", "tags": ["platform"], **plain}},
            "/metrics": {"get": {"summary": "Prometheus metrics", "tags": ["platform"], **plain}},
        },
        "components": {"schemas": {"Error": _ERROR_SCHEMA, **({} if spec.task == "ranking" else {"Row": _row(spec)})}},
    }


def page(title: str) -> str:
    """Return the Swagger page that shows `docs.json`."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{html.escape(title)}</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="./static_content/swagger-ui.css"></head>
<body><div id="swagger-ui"></div>
<script src="./static_content/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({{url: "./docs.json", dom_id: "#swagger-ui", tryItOutEnabled: true}});</script>
</body></html>
"""


@cache
def asset(name: str) -> bytes:
    """Return one of ASSETS from the files that BentoML ships."""
    import bentoml

    assert name in ASSETS
    return (Path(bentoml.__file__).parent / "_internal" / "server" / "static_content" / name).read_bytes()


def _request(spec: ServingSpec) -> dict[str, Any]:
    ids = {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": spec.max_rows}
    if spec.task == "ranking":
        count = {"type": "integer", "minimum": 1, "maximum": MOST_ITEMS, "default": 10}
        return _object(
            {"users": {**ids, "description": "User ids; unknown ones get the popular items."}, "k": count}, 1
        )
    width = len(spec.columns)
    as_list = {
        "type": "array",
        "items": {},
        "minItems": width,
        "maxItems": width,
        "description": f"The values in this order: {', '.join(spec.names)}",
    }
    row = {"oneOf": [{"$ref": "#/components/schemas/Row"}, as_list]}
    return _object({"rows": {"type": "array", "items": row, "minItems": 1, "maxItems": spec.max_rows}}, 1)


def _row(spec: ServingSpec) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {column.name: _column(column) for column in spec.columns},
        "required": [column.name for column in spec.columns if not column.nullable],
        "additionalProperties": False,
    }


def _column(column: Column) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "number"}
    if column.values is not None:
        schema = {"type": "string", "enum": list(column.values)}
    elif column.type == "int":
        schema = {"type": "integer"}
    if column.nullable:
        schema["nullable"] = True
    if column.minimum is not None or column.maximum is not None:
        low, high = (f"{bound:g}" if bound is not None else "" for bound in (column.minimum, column.maximum))
        schema["description"] = f"Expected {low}…{high}; values outside are answered and counted."
    return schema


def _response(spec: ServingSpec) -> dict[str, Any]:
    number, text = {"type": "number"}, {"type": "string"}
    tail = {"model": text, "version": {"type": "integer"}, "request_id": text}
    if spec.task == "regression":
        return _object({"predictions": {"type": "array", "items": number}, **tail}, 4)
    if spec.task == "ranking":
        item = _object({"item": {"type": "integer"}, "title": text, "score": number}, 1)
        ranked = {"type": "array", "items": {"type": "array", "items": item}, "description": "Best first, by user."}
        return _object({"predictions": ranked, "known": {"type": "array", "items": {"type": "boolean"}}, **tail}, 5)
    classes = list(spec.classes)
    label = {"type": "string", "enum": classes}
    probabilities = {
        "type": "array",
        "items": {"type": "array", "items": number, "minItems": len(classes), "maxItems": len(classes)},
        "description": f"By row, in this order: {', '.join(classes)}",
    }
    return _object({"predictions": {"type": "array", "items": label}, "probabilities": probabilities, **tail}, 5)


def _object(properties: dict[str, Any], required: int) -> dict[str, Any]:
    """Return the schema of an object whose first `required` properties must be there."""
    return {"type": "object", "properties": properties, "required": list(properties)[:required]}
