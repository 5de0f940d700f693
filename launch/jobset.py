"""The manifest of a job on Kubernetes: a JobSet, one replicated Job of as many pods as a slice has hosts.

Sources: JobSet's API (v1alpha2), Kubernetes' Pod failure policy, Kueue's labels, GKE's pages of TPU and GPU node pools.
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.launch.accelerators import GPUS, Tpu, require_accelerator
from jaxformer.launch.job import COORDINATOR_PORT, Job
from jaxformer.launch.policy import USER_ERROR, shell_pause

WORKERS, CONTAINER = "workers", "worker"
RESTARTS = "jobset.sigs.k8s.io/restart-attempt"
INDEX = "batch.kubernetes.io/job-completion-index"
# 75, and every end that is not the command's own (the node was taken, the memory ran out), starts the JobSet again.
FINAL_CODES = [1, USER_ERROR, 126, 127]  # the last two: the image has no such program
GRACE_SECONDS = 120  # a spot machine takes fewer
# JobSet starts again at once; the pause is ours.
RUN = """\
if [ "$ATTEMPT" -gt 0 ]; then
    restarts=$(( ATTEMPT - 1 ))
    {pause}
    sleep $pause
fi
exec jaxformer "$@"
"""


def manifest(
    job: Job, *, image: str, queue: str = "", priority: str = "", service_account: str = "", topology: str = ""
) -> dict[str, Any]:
    """Return the JobSet, whose Jobs are the slices."""
    found = require_accelerator(job.accelerator)
    pods = found.hosts if isinstance(found, Tpu) else job.hosts
    labels = _given({"kueue.x-k8s.io/queue-name": queue, "kueue.x-k8s.io/priority-class": priority})
    # A slice is a node pool of its own.
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    stop = {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": FINAL_CODES}}
    spec = {
        "parallelism": pods,
        "completions": pods,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [stop]},
        "template": {
            **({"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}} if job.mounts else {}),
            "spec": _pod(job, found, _container(job, found, image, pods), service_account, topology),
        },
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            **({"labels": labels} if labels else {}),
            **({"annotations": exclusive} if isinstance(found, Tpu) else {}),
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": job.restarts,
                "restartStrategy": "BlockingRecreate",
                "rules": [{"name": "stop", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": WORKERS, "replicas": job.slices, "template": {"spec": spec}}],
        },
    }


def secret_of(name: str) -> str:
    """Return the name of the Kubernetes Secret of a job, which should be nobody else's."""
    return f"{name}-jaxformer"


def _container(job: Job, found: Tpu | tuple[str, int], image: str, pods: int) -> dict[str, Any]:
    chips = {"google.com/tpu": found.chips_per_host} if isinstance(found, Tpu) else {"nvidia.com/gpu": found[1]}
    script = RUN.format(pause=shell_pause("restarts", job.backoff))
    variables = {"PYTHONUNBUFFERED": "1", **job.environment}
    fields = {"ATTEMPT": RESTARTS}
    if not isinstance(found, Tpu) and pods > 1:  # GKE itself tells the workers of a slice who they are
        variables["JAX_COORDINATOR_ADDRESS"] = f"{job.name}-{WORKERS}-0-0.{job.name}:{COORDINATOR_PORT}"
        variables["JAX_NUM_PROCESSES"] = str(pods)
        fields["JAX_PROCESS_ID"] = INDEX
    return {
        "name": CONTAINER,
        "image": image,
        "command": ["bash", "-c", _literal(script), "worker"],
        "args": [_literal(word) for word in job.command],
        "env": [
            *({"name": name, "value": _literal(value)} for name, value in variables.items()),
            *(
                {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}}
                for name, annotation in fields.items()
            ),
        ],
        **({"envFrom": [{"secretRef": {"name": secret_of(job.name)}}]} if job.secrets else {}),
        "resources": {"limits": chips},
        "volumeMounts": [
            {"name": "memory", "mountPath": "/dev/shm"},
            *({"name": f"store-{number}", "mountPath": folder} for number, folder in enumerate(job.mounts)),
        ],
    }


def _pod(
    job: Job, found: Tpu | tuple[str, int], container: dict[str, Any], service_account: str, topology: str
) -> dict[str, Any]:
    tpu = isinstance(found, Tpu)
    where = {"cloud.google.com/gke-spot": "true" if job.spot else "", "cloud.google.com/reservation-name": job.reserved}
    if isinstance(found, Tpu):
        where["cloud.google.com/gke-tpu-accelerator"] = found.kind.gke
        where["cloud.google.com/gke-tpu-topology"] = topology or found.topology
    else:
        where["cloud.google.com/gke-accelerator"] = GPUS[found[0]][0]
    tainted = [*([] if tpu else ["nvidia.com/gpu"]), *(["cloud.google.com/gke-spot"] if job.spot else [])]
    tolerations = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in tainted]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        # Slices talk to each other over the hosts' own network.
        **({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if tpu else {}),
        **({"serviceAccountName": service_account} if service_account else {}),
        "nodeSelector": _given(where),
        **({"tolerations": tolerations} if tolerations else {}),
        "containers": [container],
        "volumes": [
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
            *(_store(number, url) for number, url in enumerate(job.mounts.values())),
        ],
    }


def _store(number: int, url: str) -> dict[str, Any]:
    bucket, _, inside = url.removeprefix("gs://").partition("/")
    mount = ",".join(["implicit-dirs", *([f"only-dir={inside}"] if inside else [])])
    attributes = {"bucketName": bucket, "mountOptions": mount}
    return {"name": f"store-{number}", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}


def _given(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def _literal(text: str) -> str:
    """Keep Kubernetes from putting variables in for $(NAME)."""
    return text.replace("$", "$$")
