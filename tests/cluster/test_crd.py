"""`crd.py` on a small definition of its own; the shipped manifest on KubeRay's, where its file is given."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.faces import ROOT

pytest.importorskip("jsonschema")

from tests.cluster.crd import errors

CRD = "LAFS_KUBERAY_CRD"

DEFINITION = yaml.safe_load("""
spec:
  group: example.org
  names: {kind: Job}
  versions:
    - name: v1
      served: true
      schema:
        openAPIV3Schema:
          type: object
          properties:
            apiVersion: {type: string}
            kind: {type: string}
            metadata: {type: object}
            spec:
              type: object
              required: [count]
              properties:
                count: {type: integer, minimum: 0}
                mode: {type: string, enum: [one, many]}
                memory:
                  {anyOf: [{type: integer}, {type: string}], pattern: '^[0-9]+Gi$', x-kubernetes-int-or-string: true}
                labels: {type: object, additionalProperties: {type: string}}
                free: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {a: {type: string}}}
                enum: {type: array, items: {type: object, properties: {name: {type: string}}}}
""")
MANIFEST = {
    "apiVersion": "example.org/v1",
    "kind": "Job",
    "metadata": {"name": "any", "labels": {"any": "thing"}},
    "spec": {
        "count": 1,
        "mode": "many",
        "memory": "8Gi",
        "labels": {"pool": "gpu"},
        "free": {"b": 1},
        "enum": [{"name": "a"}],
    },
}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.count", "1", "spec.count: '1' is not of type 'integer'"),
        ("spec.count", -1, "spec.count: -1 is less than the minimum of 0"),
        ("spec.mode", "two", "spec.mode: 'two' is not one of ['one', 'many']"),
        ("spec.memory", "8 Gi", "spec.memory: '8 Gi' does not match '^[0-9]+Gi$'"),
        ("spec.memory", 8.5, "spec.memory: 8.5 is not of type 'integer', 'string'"),
        ("spec.labels", {"a": 1}, "spec.labels.a: 1 is not of type 'string'"),
        ("spec.free", {"a": 1}, "spec.free.a: 1 is not of type 'string'"),
        ("spec.enum", [{"nome": "a"}], "spec.enum.0: Additional properties are not allowed ('nome' was unexpected)"),
        ("spec", {}, "spec: 'count' is a required property"),
        ("specs", {}, "(top): Additional properties are not allowed ('specs' was unexpected)"),
        ("kind", "Jab", "example.org Jab: the schema is that of example.org Job"),
        ("apiVersion", "example.org/v2", "apiVersion: v2 is none of v1"),
    ],
)
def test_errors__name_the_place_and_what_is_wrong(path: str, value: Any, message: str) -> None:
    manifest: dict[str, Any] = copy.deepcopy(MANIFEST)
    assert errors(manifest, DEFINITION) == []
    *owners, name = path.split(".")
    owner = manifest
    for one in owners:
        owner = owner[one]
    owner[name] = value
    assert message in errors(manifest, DEFINITION)


@pytest.mark.skipif(CRD not in os.environ, reason=f"{CRD} names no file: KubeRay's ray.io_rayjobs.yaml")
def test_rayjob__passes_the_whole_schema_of_kuberay() -> None:
    """Every field down to those of the pods."""
    definition = yaml.safe_load(Path(os.environ[CRD]).read_text())
    manifest = yaml.safe_load((ROOT / "configs/cluster/rayjob.yaml").read_text())
    assert errors(manifest, definition) == []
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imagee"] = "a"
    assert len(errors(manifest, definition)) == 1
