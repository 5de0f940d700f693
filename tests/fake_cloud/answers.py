"""What gcloud says when a call fails: texts of real calls, in which $name and the like are filled in."""

LOGIN = """You do not currently have an active account selected.
Please run:

  $ gcloud auth login

to obtain new credentials.

If you have already logged in with a different account, run:

  $ gcloud config set account ACCOUNT

to select an already authenticated account to use."""
QUOTA = """HttpError accessing <https://tpu.googleapis.com/v2/$parent/$kind?alt=json>: response: \
<{'status': 429}>, content <{
  "error": {
    "code": 429,
    "message": "Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 4 in zone $zone.",
    "status": "RESOURCE_EXHAUSTED"
  }
}
>
This may be due to network connectivity issues. Please check your network settings, and the status of the service you \
are trying to reach."""
CAPACITY = """{
  "code": 8,
  "message": "There is no more capacity in the zone \\"$zone\\"; you can try in another zone where Cloud TPU Nodes \
are offered (see https://cloud.google.com/tpu/docs/regions) [EID: 0xe1d1ce9f2eae7a03]"
}"""
PERMISSION = (
    "PERMISSION_DENIED: Permission denied on 'locations/$zone' (or it may not exist). This command is authenticated "
    "as someone@example.com which is the active account specified by the [core/account] property."
)
NOT_FOUND = "NOT_FOUND: Resource '$name' was not found"
EXISTS = "ALREADY_EXISTS: Resource '$name' already exists"
SSH_REFUSED = "[/usr/bin/ssh] exited with return code [255]."
UNKNOWN = (
    "INVALID_ARGUMENT: Cloud TPU received a bad request. The requested accelerator configuration for accelerator type, "
    '"$accelerator", could not be found in the zonal accelerator configurations for "$zone".; the accelerator '
    "$accelerator was not found in zone $zone [EID: 0x3e57d081b512151f]"
)
FAILURES = {
    "login": LOGIN, "quota": QUOTA, "capacity": CAPACITY, "permission": PERMISSION, "not_found": NOT_FOUND,
    "exists": EXISTS, "ssh_refused": SSH_REFUSED,
}  # fmt: skip
