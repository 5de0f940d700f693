"""What SkyPilot's controller of one managed job does, and the machines that it gets, which are processes here."""

import json
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from fake_cloud import common, gcloud
from fake_cloud.common import Store

JAX_PORT = 8476  # where the processes of JAX meet by default
FAILED = ("FAILED", "FAILED_SETUP", "FAILED_PRECHECKS", "FAILED_NO_RESOURCE", "FAILED_CONTROLLER")
TERMINAL = ("SUCCEEDED", "CANCELLED", *FAILED)


def accelerator(resources: dict[str, Any]) -> tuple[str, int]:
    """The kind and count that `accelerators` names, as H100:8 or {H100: 8}."""
    given = resources.get("accelerators") or ""
    kind, _, count = (":".join(map(str, *given.items())) if isinstance(given, dict) else given).partition(":")
    return kind, int(float(count or 1))


def log_path(store: Store, number: str, attempt: int) -> Path:
    return store.folder / "jobs" / number / f"attempt-{attempt}.log"


class Controller:
    """Brings a job's machines up, as often as it takes, until it ends."""

    def __init__(self, number: str) -> None:
        self.store, self.number = Store(Path(os.environ["FAKE_CLOUD"])), number
        self.task = self.store.read()["jobs"][number]["task"]
        self.printing = threading.Lock()
        kind, count = accelerator(self.task["resources"])
        # Every host of a TPU is a node to sky.
        self.tpu = kind.startswith("tpu-")
        hosts = gcloud.hosts(self.store, kind.removeprefix("tpu-")) if self.tpu else 1
        self.nodes = self.task.get("num_nodes", 1) * hosts
        self.gpus = 0 if self.tpu or not kind else count
        self.stamp = time.strftime("sky-managed-%Y-%m-%d-%H-%M-%S-000000")

    def run(self) -> int:
        recovery, restarts = self.task["recovery"], 0
        codes = recovery.get("recover_on_exit_codes") or []
        codes = [codes] if isinstance(codes, int) else codes
        while True:
            status, returned = self._attempt()
            job = self._change(codes=returned)
            if job["cancelled"]:
                status = "CANCELLED"
            elif job["preempted"]:
                status = "RECOVERING"
            elif status != "SUCCEEDED" and set(codes) & set(returned):
                status = "RECOVERING"  # as often as it happens
            elif status != "SUCCEEDED" and restarts < recovery.get("max_restarts_on_errors", 0):
                restarts += 1
                status = "RECOVERING"
            if status != "RECOVERING":
                reason = f"Job exited with exit codes {returned} (user program failure)." if status in FAILED else None
                self._change(status=status, end_at=time.time(), failure_reason=reason)
                return 0
            # In either case the machines are others afterwards.
            self._change(status=status, preempted=False, recovery_count=job["recovery_count"] + 1)
            time.sleep(self.store.setting("settings")["recovery_seconds"] if job["preempted"] else 0)

    def _change(self, **facts: Any) -> dict[str, Any]:
        with self.store.change() as state:
            job: dict[str, Any] = state["jobs"][self.number]
            if job["cancelled"] and facts.get("status") not in (None, *TERMINAL):
                facts["status"] = "CANCELLING"
            job.update(facts)
        return job

    def _attempt(self) -> tuple[str, list[int]]:
        """One life of the machines: how the task ended on them, and the nodes' exit codes."""
        job = self.store.read()["jobs"][self.number]
        self.attempt = job["attempt"] + 1
        self.port = common.free_port()
        # All of 127.0.0.0/8 is this machine: a network of its own keeps jobs that run at the same time apart.
        self.network = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}"
        self.log = log_path(self.store, self.number, self.attempt)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        if job["cancelled"]:
            return "CANCELLED", []
        for rank in range(self.nodes):
            self._prepare(rank)
        self._change(attempt=self.attempt, status="RUNNING")
        if self.task.get("setup") and not self.store.setting("settings")["skip_setup"]:
            returned = self._everywhere(self.task["setup"], setup=True)
            if any(returned):
                return "FAILED_SETUP", returned
        self._say("└── Job started. Streaming logs... (Ctrl-C to exit log streaming; job will not be killed)")
        returned = self._everywhere(self.task.get("run") or "true", setup=False)
        return ("FAILED" if any(returned) else "SUCCEEDED"), returned

    def _home(self, rank: int) -> Path:
        return self.log.parent / f"attempt-{self.attempt}" / f"node-{rank}"

    def _prepare(self, rank: int) -> None:
        """Upload the code and the local files."""
        home = self._home(rank)
        if self.task["workdir"]:
            shutil.copytree(Path(self.task["workdir"]).expanduser(), home / "sky_workdir")
        else:
            (home / "sky_workdir").mkdir(parents=True)
        for target, source in (self.task.get("file_mounts") or {}).items():
            if isinstance(source, str) and "://" not in source and not target.startswith("/"):
                there = home / target.removeprefix("~/")
                there.parent.mkdir(parents=True, exist_ok=True)
                path = Path(source).expanduser()
                shutil.copytree(path, there) if path.is_dir() else shutil.copy2(path, there)

    def _everywhere(self, script: str, setup: bool) -> list[int]:
        """Run it on all nodes; when one fails the others are killed, without a warning, and counted with 137.

        What it left in the background ends with it.
        """
        nodes, readers = [], []
        for rank in range(self.nodes):
            own = {
                "SKYPILOT_NODE_IPS": "\n".join(f"{self.network}.{rank + 1}" for rank in range(self.nodes)),
                # Elsewhere JAX listens on all addresses of its machine, which here are other jobs' too.
                "JAX_COORDINATOR_BIND_ADDRESS": f"{self.network}.1:{JAX_PORT}",
                "SKYPILOT_NODE_RANK": str(rank),
                "SKYPILOT_NUM_NODES": str(self.nodes),
                "SKYPILOT_NUM_GPUS_PER_NODE": str(self.gpus),
                "SKYPILOT_TASK_ID": f"{self.stamp}_{self.task.get('name')}_{self.number}-0",
                "SKYPILOT_CLUSTER_INFO": json.dumps({"cluster_name": f"{self.task.get('name')}-{self.number}"}),
                "PYTHONUNBUFFERED": "1",
                "HOME": str(self._home(rank)),
            }
            if setup:
                own = {key: own[key] for key in own if key not in ("SKYPILOT_NODE_IPS", "SKYPILOT_NODE_RANK")}
            if self.tpu:
                # These stand for the TPU's metadata, which JAX finds by itself.
                own["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{self.port}"
                del own["JAX_COORDINATOR_BIND_ADDRESS"]
                own |= {"JAX_NUM_PROCESSES": str(self.nodes), "JAX_PROCESS_ID": str(rank)}
            own |= self.task["envs"] | self.task["secrets"]
            machine = f"jobs/{self.number}/{self.attempt}/node-{rank}"
            node = subprocess.Popen(
                ["bash", "-c", script], cwd=self._home(rank) / "sky_workdir", stdin=subprocess.DEVNULL,
                env=common.environment(self.store, machine, **own), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", start_new_session=True,
            )  # fmt: skip
            nodes.append(node)
            readers.append(threading.Thread(target=self._print, args=(node, rank, setup), daemon=True))
            readers[-1].start()
        while any(node.poll() is None for node in nodes) and not any(node.poll() for node in nodes):
            if self.store.read()["jobs"][self.number]["cancelled"]:
                common.kill(common.machine(self.store, f"jobs/{self.number}/*"))
            time.sleep(common.TICK)
        killed = [node for node in nodes if node.poll() is None]
        common.kill(common.machine(self.store, f"jobs/{self.number}/*"))
        codes = [137 if node in killed else common.exit_code(node.wait()) for node in nodes]
        for reader in readers:
            reader.join()
        if any(codes):
            self._say(f"ERROR: Job 1 failed with return code list: {codes}")
        return codes

    def _print(self, node: "subprocess.Popen[str]", rank: int, setup: bool) -> None:
        where = "head" if rank == 0 else f"worker{rank}"
        address = "" if rank == 0 else f", ip={self.network}.{rank + 1}"
        if setup:
            prefix = f"(setup pid={node.pid}{address})"
        elif self.nodes == 1:
            prefix = f"({self.task.get('name')}, pid={node.pid})"
        else:
            prefix = f"({where}, rank={rank}, pid={node.pid}{address})"
        assert node.stdout is not None
        for line in node.stdout:
            self._say(f"{prefix} {line.rstrip()}")

    def _say(self, line: str) -> None:
        with self.printing, open(self.log, "a") as log:
            print(line, file=log, flush=True)
