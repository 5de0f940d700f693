"""A fake of kubectl for JobSets, their pods and secrets; each JobSet gets a controller of its own (jobset.py)."""

import base64
import datetime
import json
import re
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from fake_cloud import common, jobset
from fake_cloud.common import Refusal, Store

GLOBAL = ("namespace|n=", "context=", "kubeconfig=", "request-timeout=")
FLAGS: dict[str, tuple[str, ...]] = {
    "apply": ("filename|f=*", "output|o=", "dry-run=", "server-side", "validate="),
    "get": ("selector|l=", "output|o=", "ignore-not-found", "no-headers", "all-namespaces|A"),
    "logs": ("follow|f", "tail=", "since-time=", "timestamps", "container|c=", "pod-running-timeout=", "ignore-errors"),
    "delete": ("wait=", "cascade=", "ignore-not-found=", "timeout=", "grace-period=", "now"),
    "create": ("from-env-file=*", "from-literal=*", "from-file=*", "dry-run=", "output|o=", "save-config"),
    "patch": ("type=", "patch|p=", "output|o="),
}
KINDS = {
    "jobset": "jobsets", "jobsets": "jobsets", "jobsets.jobset.x-k8s.io": "jobsets", "pod": "pods", "pods": "pods",
    "po": "pods", "secret": "secrets", "secrets": "secrets",
}  # fmt: skip
FULL = {"jobsets": "jobsets.jobset.x-k8s.io", "pods": "pods", "secrets": "secrets"}
NAMES = {"jobsets": "jobset.jobset.x-k8s.io", "pods": "pod", "secrets": "secret"}
FAILURES = {
    "login": "error: You must be logged in to the server (Unauthorized)",
    "permission": (
        'Error from server (Forbidden): jobsets.jobset.x-k8s.io is forbidden: User "someone@example.com" cannot create '
        'resource "jobsets" in API group "jobset.x-k8s.io" in the namespace "default"'
    ),
    "quota": (
        'Error from server (Forbidden): error when creating "STDIN": jobsets.jobset.x-k8s.io "job" is forbidden: '
        "exceeded quota: compute, requested: requests.google.com/tpu=8, used: requests.google.com/tpu=8, limited: "
        "requests.google.com/tpu=8"
    ),
    "not_found": 'Error from server (NotFound): jobsets.jobset.x-k8s.io "job" not found',
    "exists": 'Error from server (AlreadyExists): jobsets.jobset.x-k8s.io "job" already exists',
    "ssh_refused": "The connection to the server 127.0.0.1 was refused - did you specify the right host or port?",
}


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["CONTROLLER"]:
        return jobset.Controller(arguments[1]).run()
    store = common.start("kubectl", arguments)
    kind = common.planned_failure(store, "kubectl", arguments)
    # Flags of all commands may also stand before the command.
    verb = next((word for word in arguments if word in FLAGS), None)
    if verb is None:
        raise Refusal(f'error: unknown command "{" ".join(arguments[:1])}" for "kubectl"')
    parser = common.Parser(f"kubectl {verb}", 1, "error: {message}\nSee '{title} --help' for usage.")
    parser.flags(*GLOBAL, *FLAGS[verb]).add_argument("words", nargs="*")
    position = arguments.index(verb)
    # Switches that may be given a value, as in --wait=false.
    spelled = [f"{word}=true" if word in ("--wait", "--ignore-not-found") and verb == "delete" else word
               for word in arguments[:position] + arguments[position + 1 :]]  # fmt: skip
    flags = parser.parse_args(spelled)
    if kind:
        raise Refusal(FAILURES[kind])
    call = Call(store, flags)
    return {
        "apply": call.apply, "get": call.get, "logs": call.logs, "delete": call.delete, "create": call.create,
        "patch": call.patch,
    }[verb]() or 0  # fmt: skip


class Call:
    def __init__(self, store: Store, flags: Any) -> None:
        self.store, self.flags = store, flags
        self.namespace = flags.namespace or "default"

    def _read(self, path: str) -> str:
        if path not in ("-", "/dev/stdin"):
            try:
                return Path(path).read_text()
            except FileNotFoundError:
                raise Refusal(f'error: the path "{path}" does not exist') from None
        text = sys.stdin.read()
        common.append(self.store.folder / "stdin.jsonl", {"tool": "kubectl", "bytes": len(text.encode())})
        return text

    def _what(self, name: bool = True) -> tuple[str, str]:
        """The kind and, with `name`, the name that the call is about: two words or KIND/NAME."""
        words = [part for word in self.flags.words for part in word.split("/", 1)]
        if not words or words[0] not in KINDS:
            raise Refusal(f'error: the server doesn\'t have a resource type "{words[0] if words else ""}"')
        if name and len(words) != 2:
            raise Refusal("error: resource(s) were provided, but no name was specified")
        return KINDS[words[0]], words[1] if len(words) > 1 else ""

    def _missing(self, kind: str, name: str) -> Refusal:
        return Refusal(f'Error from server (NotFound): {FULL[kind]} "{name}" not found')

    def _show(self, what: Any, kind: str) -> None:
        items = what["items"] if "items" in what else [what]
        form = self.flags.output or "table"
        if form == "json":
            print(json.dumps(what, indent=4))
        elif form == "yaml":
            import yaml

            print(yaml.safe_dump(what), end="")
        elif form == "name":
            for item in items:
                print(f"{NAMES[kind]}/{item['metadata']['name']}")
        elif form in ("table", "wide"):
            print("\n".join(["NAME", *(item["metadata"]["name"] for item in items)]))
        else:
            raise Refusal(f'error: unable to match a printer suitable for the output format "{form}" in this fake')

    def apply(self) -> None:
        import yaml

        if not self.flags.filename:
            raise Refusal("error: must specify one of -f and -k")
        for path in self.flags.filename:
            for manifest in yaml.safe_load_all(self._read(path)):
                if manifest:
                    self._apply(manifest)

    def _apply(self, manifest: dict[str, Any]) -> None:
        metadata = manifest.get("metadata", {})
        key = f"{metadata.get('namespace', self.namespace)}/{metadata['name']}"
        if manifest.get("kind") == "Secret" and manifest.get("apiVersion") == "v1":
            with self.store.change() as state:
                secrets = state.setdefault("secrets", {})
                done = "configured" if key in secrets else "created"
                secrets[key] = _secret(manifest)
            print(f"secret/{metadata['name']} {done}")
            return
        if (manifest.get("apiVersion"), manifest.get("kind")) != ("jobset.x-k8s.io/v1alpha2", "JobSet"):
            raise Refusal(
                f'error: resource mapping not found for name: "{metadata["name"]}": no matches for kind '
                f'"{manifest.get("kind")}" in version "{manifest.get("apiVersion")}"\nensure CRDs are installed first'
            )
        if self.store.setting("settings")["check_manifests"]:
            import clouds

            try:
                clouds.check_manifest(manifest)
            except ValueError as error:
                raise Refusal(f'The JobSet "{metadata["name"]}" is invalid: {error}') from None
        if self.flags.dry_run not in (None, "none"):
            print(f"jobset.jobset.x-k8s.io/{metadata['name']} created (dry run)")
            return
        with self.store.change() as state:
            known = state.setdefault("jobsets", {})
            if key in known:
                old = known[key]["manifest"]
                if {**old["spec"], "suspend": None} != {**manifest["spec"], "suspend": None}:
                    raise Refusal(
                        f'The JobSet "{metadata["name"]}" is invalid: spec.replicatedJobs: Invalid value: field is '
                        "immutable"
                    )
                done = "unchanged" if old == manifest else "configured"
                known[key]["manifest"] = manifest
            else:
                done = "created"
                status = {"restarts": 0, "conditions": []}
                known[key] = {"manifest": manifest, "uid": str(uuid.uuid4()), "status": status, "created": _now()}
        if done == "created":
            common.detach(self.store, "kubectl", key)
        print(f"jobset.jobset.x-k8s.io/{metadata['name']} {done}")

    def get(self) -> None:
        kind, name = self._what(name=False)
        state = self.store.read()
        objects = {
            key: {"jobsets": _jobset, "pods": jobset.pod_object, "secrets": lambda secret: secret}[kind](facts)
            for key, facts in state.get(kind, {}).items()
            if self.flags.all_namespaces or key.startswith(f"{self.namespace}/")
        }
        if name:
            if found := objects.get(f"{self.namespace}/{name}"):
                self._show(found, kind)
            elif not self.flags.ignore_not_found:
                raise self._missing(kind, name)
            return
        items = [one for one in objects.values() if _matches(self.flags.selector, one["metadata"].get("labels", {}))]
        if not items and self.flags.output in (None, "wide", "name"):
            print(f"No resources found in {self.namespace} namespace.", file=sys.stderr)
        else:
            self._show({"apiVersion": "v1", "kind": "List", "items": items, "metadata": {"resourceVersion": ""}}, kind)

    def logs(self) -> None:
        name = self.flags.words[0].removeprefix("pod/") if self.flags.words else ""
        key = f"{self.namespace}/{name}"
        pod = self.store.read().get("pods", {}).get(key)
        if pod is None:
            raise self._missing("pods", name)
        if self.flags.container not in (None, pod["container"]):
            raise Refusal(f"error: container {self.flags.container} is not valid for pod {name}")
        if pod["phase"] == "Pending":
            raise Refusal(
                f'Error from server (BadRequest): container "{pod["container"]}" in pod "{name}" is waiting to start: '
                "ContainerCreating"
            )
        with open(pod["log"]) as log:
            lines = log.readlines()
            tail = int(self.flags.tail) if self.flags.tail is not None else -1
            for line in lines[len(lines) - tail if 0 <= tail < len(lines) else 0 :]:
                self._print(line)
            while self.flags.follow:
                pod = self.store.read().get("pods", {}).get(key)
                while line := log.readline():
                    self._print(line)
                if pod is None or pod["phase"] in ("Succeeded", "Failed"):
                    break
                time.sleep(common.TICK)

    def _print(self, line: str) -> None:
        # Each line was stored with its time in front, as kubelets do; those of a second are shown from its beginning.
        if line[:19] < (self.flags.since_time or "")[:19]:
            return
        print(line if self.flags.timestamps else line.partition(" ")[2], end="", flush=True)

    def delete(self) -> None:
        kind, name = self._what()
        if kind == "pods":
            raise Refusal("error: the fake deletes only JobSets and secrets")
        key = f"{self.namespace}/{name}"
        with self.store.change() as state:
            found = state.get(kind, {}).get(key)
            if found is None:
                if self.flags.ignore_not_found in ("true",):
                    return
                raise self._missing(kind, name)
            if kind == "secrets":
                del state["secrets"][key]
            else:
                found["deleted"] = True
        print(f'{NAMES[kind]} "{name}" deleted')
        end = time.monotonic() + float((self.flags.timeout or "300").removesuffix("s"))
        while self.flags.wait != "false" and kind != "secrets":
            if self.store.read().get(kind, {}).get(key, {}).get("uid") != found["uid"]:
                break
            if time.monotonic() > end:
                raise Refusal(f"error: timed out waiting for the condition on {FULL[kind]}/{name}")
            time.sleep(common.TICK)

    def create(self) -> None:
        if self.flags.words[:2] != ["secret", "generic"] or len(self.flags.words) != 3:
            raise Refusal("error: the fake creates only `secret generic NAME`")
        name, data = self.flags.words[2], {}
        for path in self.flags.from_env_file or []:
            for line in self._read(path).splitlines():
                if line.strip() and not line.startswith("#"):
                    key, _, value = line.partition("=")
                    data[key] = value
        for pair in self.flags.from_literal or []:
            key, _, value = pair.partition("=")
            data[key] = value
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
        }
        if self.flags.dry_run == "client":
            self._show(manifest, "secrets")
            return
        with self.store.change() as state:
            if f"{self.namespace}/{name}" in state.setdefault("secrets", {}):
                raise Refusal(f'error: failed to create secret secrets "{name}" already exists')
            state["secrets"][f"{self.namespace}/{name}"] = _secret(manifest)
        print(f"secret/{name} created")

    def patch(self) -> None:
        kind, name = self._what()
        if kind != "jobsets" or self.flags.type != "merge" or not self.flags.patch:
            raise Refusal("error: the fake patches only JobSets, with --type=merge -p")
        patch = json.loads(self.flags.patch)
        if set(patch) != {"spec"} or set(patch["spec"]) != {"suspend"}:
            raise Refusal(f'The JobSet "{name}" is invalid: spec: Invalid value: field is immutable')
        with self.store.change() as state:
            found = state.get(kind, {}).get(f"{self.namespace}/{name}")
            if found is None:
                raise self._missing(kind, name)
            found["manifest"]["spec"]["suspend"] = patch["spec"]["suspend"]
        print(f"jobset.jobset.x-k8s.io/{name} patched")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _secret(manifest: dict[str, Any]) -> dict[str, Any]:
    texts = manifest.get("stringData", {})
    plain = {key: base64.b64encode(str(value).encode()).decode() for key, value in texts.items()}
    kept = {key: value for key, value in manifest.items() if key != "stringData"}
    return {**kept, "data": {**manifest.get("data", {}), **plain}, "type": "Opaque"}


def _jobset(facts: dict[str, Any]) -> dict[str, Any]:
    manifest = facts["manifest"]
    own = {"creationTimestamp": facts["created"], "uid": facts["uid"]}
    return {**manifest, "metadata": {**manifest["metadata"], **own}, "status": facts["status"]}


def _matches(selector: str | None, labels: dict[str, str]) -> bool:
    for part in (selector or "").split(","):
        match = re.fullmatch(r"([^=!,]+)(==|=|!=)?(.*)", part)
        if match and match[2] and (labels.get(match[1]) == match[3]) == (match[2] == "!="):
            return False
        if match and not match[2] and match[1] not in labels:
            return False
    return True
