"""A manifest against the schema of its custom resource, as strictly as `kubectl apply` validates it.

python -m tests.cluster.crd configs/cluster/rayjob.yaml ray.io_rayjobs.yaml

The second file is the operator's, from its Helm chart; it is not in this repository. Kubernetes drops a field that the
schema does not name, and `kubectl` refuses it: here it is an error as well.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator


def errors(manifest: dict[str, Any], definition: dict[str, Any]) -> list[str]:
    """Where a manifest differs from the schema of its version, and how."""
    group, _, version = manifest["apiVersion"].partition("/")
    spec = definition["spec"]
    if (group, manifest["kind"]) != (spec["group"], spec["names"]["kind"]):
        return [f"{group} {manifest['kind']}: the schema is that of {spec['group']} {spec['names']['kind']}"]
    schemas = {one["name"]: one["schema"]["openAPIV3Schema"] for one in spec["versions"] if one["served"]}
    if version not in schemas:
        return [f"apiVersion: {version} is none of {', '.join(schemas)}"]
    found = Draft202012Validator(strict(schemas[version])).iter_errors(manifest)
    return sorted(f"{'.'.join(map(str, one.absolute_path)) or '(top)'}: {one.message}" for one in found)


def strict(schema: Any) -> Any:
    """A schema of Kubernetes as JSON Schema: no unnamed fields, and its own words in those of JSON Schema."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    # Names of fields may be words of the schema, too.
    changed = {
        key: {name: strict(one) for name, one in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
    }
    if schema.get("x-kubernetes-int-or-string"):
        changed["type"] = ["integer", "string"]
    elif schema.get("nullable"):
        changed["type"] = [schema["type"], "null"]
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        changed.setdefault("additionalProperties", False)
    return changed


def main(manifest: str, definition: str) -> int:
    """Print the differences; 1 if there is one."""
    found = errors(*(yaml.safe_load(Path(path).read_text()) for path in (manifest, definition)))
    print("\n".join(found) or "no difference")
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
