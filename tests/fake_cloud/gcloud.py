"""A fake of `gcloud compute tpus`: nodes are folders, their workers' shells run on this machine."""

import json
import re
import string
import sys
import time
import uuid
from typing import Any

from fake_cloud import common, ssh
from fake_cloud.answers import EXISTS, FAILURES, NOT_FOUND, SSH_REFUSED, UNKNOWN
from fake_cloud.common import Refusal, Store

PROJECT = "fake-project"
GLOBAL = ("project=", "quiet|q", "format=", "verbosity=", "account=", "zone=")
MACHINE = (
    "type=", "topology=", "accelerator-type=", "description=", "network=", "subnetwork=", "internal-ips", "reserved",
    "range=", "service-account=", "scopes=", "labels=", "metadata=", "metadata-from-file=", "tags=", "data-disk=*",
    "shielded-secure-boot", "boot-disk=", "async",
)  # fmt: skip
QUEUE = (
    "node-id=", "node-count=", "node-prefix=", "runtime-version=", "spot", "guaranteed", "valid-until-duration=",
    "valid-until-time=", "valid-after-duration=", "valid-after-time=", "reservation-host-project=",
)  # fmt: skip
SSH = (
    "worker=", "internal-ip", "plain", "dry-run", "force-key-file-overwrite", "ssh-key-file=", "ssh-key-expiration=",
    "ssh-key-expire-after=", "strict-host-key-checking=",
)  # fmt: skip
FLAGS: dict[tuple[str, str], tuple[str, ...]] = {
    ("tpu-vm", "create"): (*MACHINE, "version=", "preemptible", "spot", "queue-count="),
    ("tpu-vm", "describe"): (),
    ("tpu-vm", "list"): (),
    ("tpu-vm", "delete"): ("async",),
    ("tpu-vm", "ssh"): (*SSH, "command=", "output-directory=", "ssh-flag=*"),
    ("tpu-vm", "scp"): (*SSH, "recurse", "compress", "scp-flag=*"),
    ("queued-resources", "create"): (*MACHINE, *QUEUE),
    ("queued-resources", "describe"): (),
    ("queued-resources", "list"): (),
    ("queued-resources", "delete"): ("async", "force"),
}
QUEUE_STATES = ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")


class Call:
    """One call: its parsed flags, and the names and words that errors and formats need."""

    def __init__(self, store: Store, group: str, verb: str, arguments: list[str]) -> None:
        self.store, self.group, self.verb = store, group, verb
        self.title = f"gcloud.compute.tpus.{group}.{verb}"
        parser = common.Parser(self.title, 2, "ERROR: ({title}) {message}")
        parser.flags(*GLOBAL, *FLAGS[group, verb])
        if verb != "list":
            parser.add_argument("names", nargs="+" if verb == "scp" else 1, metavar="NAME")
        self.flags = parser.parse_args(arguments)
        self.zone = self.flags.zone or "-"
        self.kind = {"tpu-vm": "nodes", "queued-resources": "queuedResources"}[group]
        self.parent = f"projects/{self.flags.project or PROJECT}/locations/{self.zone}"
        self.name = "" if verb == "list" else self.flags.names[-1 if verb == "scp" else 0]
        if self.flags.zone is None:
            resource = "tpu" if group == "tpu-vm" else "queuedresource"
            raise self.error(
                f"Error parsing [{resource}].\nThe [{resource}] resource is not properly specified.\n"
                "Failed to find attribute [zone]. The attribute can be set in the following ways: \n"
                "- provide the argument `--zone` on the command line\n- set the property `compute/zone`"
            )

    def error(self, message: str, code: int = 1) -> Refusal:
        words = {"name": self.full(self.name), "parent": self.parent, "zone": self.zone, "kind": self.kind}
        words["accelerator"] = getattr(self.flags, "accelerator_type", None) or ""
        # A dollar that starts none of these words, such as a prompt, stays.
        return Refusal(f"ERROR: ({self.title}) {string.Template(message).safe_substitute(words)}", code)

    def missing(self, *flags: str) -> None:
        for flag in flags:
            if getattr(self.flags, flag.replace("-", "_")) is None:
                raise self.error(f"argument --{flag}: Must be specified.", 2)

    def full(self, name: str) -> str:
        return f"{self.parent}/{self.kind}/{name}"

    def fail(self, kind: str) -> Refusal:
        if kind == "capacity":
            say(f"Create request issued for: [{self.name}]")
            say(f"Waiting for operation [{self.parent}/operations/operation-1] to complete...failed.")
        return self.error(FAILURES[kind], 255 if kind == "ssh_refused" else 1)

    def show(self, resources: list[dict[str, Any]]) -> None:
        """Print what --format asks for; describe shows one resource, list any number."""
        form = self.flags.format or ("yaml" if self.verb == "describe" else "value(name)")
        if form == "json":
            print(json.dumps(resources if self.verb == "list" else resources[0], indent=2))
        elif form == "yaml":
            import yaml

            print(yaml.safe_dump_all(resources, sort_keys=True), end="")
        elif match := re.fullmatch(r"value\((.*)\)", form):
            for resource in resources:
                print("\t".join(_value(resource, key.strip()) for key in match[1].split(",")))
        else:
            raise self.error(f"argument --format: the fake has json, yaml and value(...), not {form}", 2)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _value(resource: Any, key: str) -> str:
    path, basename = key.removesuffix(".basename()"), key.endswith(".basename()")
    for part in path.split("."):
        resource = resource.get(part) if isinstance(resource, dict) else None
    text = "" if resource is None else resource if isinstance(resource, str) else json.dumps(resource)
    return text.rpartition("/")[2] if basename else text


def hosts(store: Store, accelerator: str) -> int:
    """How many VMs a TPU of this type has: its number counts chips, or in some generations TensorCores."""
    if accelerator in (own := store.setting("hosts")):
        return int(own[accelerator])
    match = re.fullmatch(r"(v2|v3|v4|v5p|v5litepod|v6e)-(\d+)", accelerator)
    if not match:
        raise Refusal("unknown")
    size = int(match[2])
    if match[1] in ("v5litepod", "v6e"):
        return 1 if size <= 8 else size // 4
    return max(1, size // 8)


def main(arguments: list[str]) -> int:
    store = common.start("gcloud", arguments)
    words = arguments[1:] if arguments[:1] in (["alpha"], ["beta"]) else arguments
    kind = common.planned_failure(store, "gcloud", arguments)
    if words[:2] == ["config", "get-value"] and len(words) >= 3:
        if kind:
            raise Refusal(f"ERROR: (gcloud.config.get-value) {FAILURES[kind]}")
        print(PROJECT if words[2] == "project" else "")
        return 0
    if words[:2] != ["compute", "tpus"] or tuple(words[2:4]) not in FLAGS:
        raise Refusal(f"ERROR: (gcloud) Invalid choice: {' '.join(words[:4])!r}.", 2)
    call = Call(store, words[2], words[3], words[4:])
    if kind and kind != "ssh_refused":
        raise call.fail(kind)
    if call.verb in ("ssh", "scp"):
        return _connect(call, refused=kind is not None)
    {
        ("tpu-vm", "create"): _create,
        ("tpu-vm", "delete"): _delete,
        ("queued-resources", "create"): _enqueue,
        ("queued-resources", "delete"): _dequeue,
    }.get((call.group, call.verb), _describe)(call)
    return 0


def _new_node(call: Call, first: int, total: int, port: int) -> dict[str, Any]:
    flags = call.flags
    return {
        "zone": call.zone,
        "accelerator": flags.accelerator_type,
        "version": getattr(flags, "version", None) or flags.runtime_version,
        "spot": flags.spot or getattr(flags, "preemptible", False),
        "labels": dict(pair.split("=", 1) for pair in (flags.labels or "").split(",") if pair),
        "hosts": hosts(call.store, flags.accelerator_type),
        "state": "CREATING",
        "life": uuid.uuid4().hex[:8],  # tells its processes from those of another node that gets its name later
        "described": 0,
        "warm": False,
        # Where its processes meet: those of all nodes of a queued resource together.
        "first": first,
        "total": total,
        "port": port,
    }


def _machine_flags(call: Call) -> int:
    if call.group == "queued-resources":
        call.missing("accelerator-type")
    call.flags.accelerator_type = call.flags.accelerator_type or "v2-8"
    try:
        return hosts(call.store, call.flags.accelerator_type)
    except Refusal:
        raise call.error(UNKNOWN) from None


def _create(call: Call) -> None:
    call.missing("version")
    count = _machine_flags(call)
    with call.store.change() as state:
        nodes = state.setdefault("nodes", {})
        if call.name in nodes:
            raise call.error(EXISTS)
        nodes[call.name] = _new_node(call, 0, count, common.free_port())
    say(f"Create request issued for: [{call.name}]")
    if getattr(call.flags, "async"):
        say(f"Check operation [{call.parent}/operations/operation-1] for status.")
        return
    time.sleep(call.store.setting("settings")["create_seconds"])
    with call.store.change() as state:
        if state["nodes"][call.name]["state"] == "CREATING":
            state["nodes"][call.name]["state"] = "READY"
    say(f"Waiting for operation [{call.parent}/operations/operation-1] to complete...done.")
    say(f"Created tpu [{call.name}].")


def _enqueue(call: Call) -> None:
    call.missing("runtime-version")
    count, flags = _machine_flags(call), call.flags
    if (flags.node_id is None) == (flags.node_count is None):
        raise call.error("Exactly one of (--node-id | --node-count : --node-prefix) must be specified.", 2)
    prefix = flags.node_prefix or call.name
    names = [flags.node_id] if flags.node_id else [f"{prefix}-{index}" for index in range(int(flags.node_count))]
    port = common.free_port()
    with call.store.change() as state:
        if call.name in state.setdefault("queued", {}):
            raise call.error(EXISTS)
        state["queued"][call.name] = {
            "zone": call.zone,
            "state": QUEUE_STATES[0],
            "described": 0,
            "nodes": names,
            "specification": [_new_node(call, k * count, len(names) * count, port) for k in range(len(names))],
        }
    say(f"Create request issued for: [{call.name}]")


def _advance(call: Call, state: dict[str, Any]) -> None:
    """Each look at a resource that is on its way brings it nearer, so that tests need not wait."""
    settings, nodes = call.store.setting("settings"), state.setdefault("nodes", {})
    if node := nodes.get(call.name) if call.group == "tpu-vm" else None:
        node["described"] += 1
        if node["state"] == "CREATING" and node["described"] > settings["create_describes"]:
            node["state"] = "READY"
    if resource := state.get("queued", {}).get(call.name) if call.group != "tpu-vm" else None:
        resource["described"] += 1
        if resource["state"] in QUEUE_STATES[:-1] and resource["described"] > settings["queue_describes"]:
            resource["state"] = QUEUE_STATES[QUEUE_STATES.index(resource["state"]) + 1]
            resource["described"] = 1
            if resource["state"] == "ACTIVE":
                for name, node in zip(resource["nodes"], resource["specification"], strict=True):
                    nodes[name] = {**node, "state": "READY"}


def _resource(call: Call, name: str, known: dict[str, Any]) -> dict[str, Any]:
    """The known facts as the API gives them."""
    if call.group == "queued-resources":
        specification = [
            {"nodeId": node, "parent": call.parent, "node": {"acceleratorType": facts["accelerator"]}}
            for node, facts in zip(known["nodes"], known["specification"], strict=True)
        ]
        data = f"{known['state'].lower()}Data"
        state = {"state": known["state"], data: known.get(data, {})}
        return {"name": call.full(name), "state": state, "tpu": {"nodeSpec": specification}}
    endpoints = [{"ipAddress": "127.0.0.1", "port": 8470} for _ in range(known["hosts"])]
    return {
        "name": call.full(name),
        "acceleratorType": known["accelerator"],
        "runtimeVersion": known["version"],
        "state": known["state"],
        "health": "HEALTHY",
        "labels": known["labels"],
        "networkEndpoints": endpoints,
        "schedulingConfig": {"preemptible": True} if known["spot"] else {},
    }


def _describe(call: Call) -> None:
    with call.store.change() as state:
        if call.verb == "describe":
            _advance(call, state)
        known = state.get("nodes" if call.group == "tpu-vm" else "queued", {})
    here = {name: _resource(call, name, facts) for name, facts in known.items() if facts["zone"] == call.zone}
    if call.verb == "describe" and call.name not in here:
        raise call.error(NOT_FOUND)
    resources = list(here.values()) if call.verb == "list" else [here[call.name]]
    call.show(resources)


def _remove(store: Store, state: dict[str, Any], names: list[str]) -> None:
    """The nodes' machines end; what their disks held is kept under another name, for whoever reads a failed test."""
    for name in names:
        node = state.get("nodes", {}).pop(name, None)
        common.kill(common.machine(store, f"nodes/{name}/*"))
        folder = store.folder / "nodes" / name
        if node and folder.exists():
            folder.rename(folder.with_name(f"{name}.{node['life']}"))


def _delete(call: Call) -> None:
    with call.store.change() as state:
        if call.name not in state.get("nodes", {}):
            raise call.error(NOT_FOUND)
        _remove(call.store, state, [call.name])
        for resource in state.get("queued", {}).values():
            if call.name in resource["nodes"] and resource["state"] == "ACTIVE":
                resource["state"] = "SUSPENDED"
    say(f"Delete request issued for: [{call.name}]")
    if not getattr(call.flags, "async"):
        say(f"Waiting for operation [{call.parent}/operations/operation-1] to complete...done.")
        say(f"Deleted tpu [{call.name}].")


def _dequeue(call: Call) -> None:
    with call.store.change() as state:
        resource = state.get("queued", {}).get(call.name)
        if resource is None:
            raise call.error(NOT_FOUND)
        left = [name for name in resource["nodes"] if name in state.get("nodes", {})]
        if not call.flags.force and (resource["state"] == "ACTIVE" or resource["state"] == "PROVISIONING"):
            raise call.error(
                f"FAILED_PRECONDITION: Queued resource '{call.full(call.name)}' is in state {resource['state']}; only "
                "resources without nodes can be deleted, others with force."
            )
        _remove(call.store, state, left)
        del state["queued"][call.name]
    say(f"Delete request issued for: [{call.name}]")


def _connect(call: Call, refused: bool) -> int:
    flags = call.flags
    target = call.name if call.verb == "ssh" else call.name.partition(":")[0]
    name = target.rpartition("@")[2]
    call.name = name
    node = call.store.read().get("nodes", {}).get(name)
    if node is None or node["zone"] != call.zone:
        raise call.error(NOT_FOUND)
    if node["state"] == "PREEMPTED":
        raise call.error('This TPU has terminal state "PREEMPTED", so it cannot be used anymore.')
    workers = _workers(call, node["hosts"], flags.worker or "0")
    if len(workers) > 1 and call.verb == "ssh" and not flags.command:
        raise call.error("Invalid value for [--worker]: cannot target multiple workers without the `--command` flag.")
    # Keys that no ssh has brought to the workers yet are what several connections at once fail on.
    if refused or node["state"] != "READY" or (len(workers) > 1 and not node["warm"]):
        ssh.refuse(call.verb, workers)
        raise call.error(SSH_REFUSED, 255)
    with call.store.change() as state:
        if name in state["nodes"]:
            state["nodes"][name]["warm"] = True
    if call.verb == "scp":
        return ssh.copy(call.store, name, workers, flags.names, flags.recurse)
    if not flags.command:
        raise call.error("the fake has no interactive shell: give it --command", 2)
    code = ssh.run(call.store, name, node, workers, flags.command)
    if code == ssh.BROKEN:
        raise call.error(SSH_REFUSED, 255)
    return code


def _workers(call: Call, count: int, text: str) -> list[int]:
    if text == "all":
        return list(range(count))
    workers: set[int] = set()
    invalid = "Invalid value for [--worker]:"
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not match:
            raise call.error(f"{invalid} unable to parse worker ID {part}. Please only use numbers.")
        workers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    if max(workers) >= count:
        raise call.error(
            f"{invalid} worker index {max(workers)} is larger than the valid worker indexes on this TPU VM. Please "
            f"only use indexes in the range [0, {count - 1}], inclusive."
        )
    return sorted(workers)
