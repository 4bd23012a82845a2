"""What a cluster has room for, and whether it can be given nodes that it does not have yet."""

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.client import ray as client

from nodes.command import UsageError

_SECONDS_TO_ANSWER = 60.0
_STEP_S = 0.5
# Set on every node by what starts nodes: `ray up`, KubeRay.
_NODE_GROUP = "ray.io/node-group"


def room_for(cpus: float, gpus: float) -> int:
    """How many processes that take so much fit on the nodes that are there now."""
    asked = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # A little more than the quotient: 1 / 0.2 is five, though 0.2 is a little more than a fifth.
    return sum(min(int(node.get(kind, 0) / share + 1e-9) for kind, share in asked.items()) for node in nodes)


def has_autoscaler() -> bool:
    """Whether something adds nodes to the cluster; to one that was started by hand nothing does."""
    return any(node["Labels"].get(_NODE_GROUP) for node in ray.nodes() if node["Alive"])


def can_grow_by(resources: Mapping[str, float]) -> bool | None:
    """Whether the cluster's autoscaler, if there is one, can add a node with that much; it then begins to.

    None if that cannot be told: Ray's first autoscaler does not say. The second, that of `ray up` and KubeRay, is asked
    for the room, and tells within seconds if no kind of node has it. Ray's own table of what a cluster may grow to,
    `get_max_resources_from_cluster_config`, is filled by neither.
    """
    if not has_autoscaler():
        return False
    if client.is_connected():
        return None  # from outside, where the port that is asked may not be reached
    from ray.autoscaler.v2.sdk import request_cluster_resources

    address = ray.get_runtime_context().gcs_address
    wanted = {kind: amount for kind, amount in resources.items() if amount}
    request_cluster_resources(address, [{"resources": wanted}])
    try:
        asked = _status(address).cluster_resource_state.cluster_resource_state_version
        end = time.monotonic() + _SECONDS_TO_ANSWER
        while time.monotonic() < end:
            answer = _status(address).autoscaling_state
            if answer.last_seen_cluster_resource_state_version > asked:
                return not answer.infeasible_cluster_resource_constraints
            time.sleep(_STEP_S)
        return None
    finally:
        # What it has begun to start has minutes to be used in.
        request_cluster_resources(address, [])


def check_fits(what: str, cpus: float, gpus: float) -> None:
    """Refuse at once what no node has now or can be given by the autoscaler, rather than wait for ever.

    Args:
        what: `trial` or `worker`; its flags are --cpus-per-WHAT and --gpus-per-WHAT.

    Raises:
        UsageError: it fits on no node.
    """
    if room_for(cpus, gpus) or can_grow_by({"CPU": cpus, "GPU": gpus}) is not False:
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in ("CPU", "GPU")}
    raise UsageError(
        f"a {what} asks for {cpus} CPUs and {gpus:g} GPUs, and no node of the cluster has them (the largest have "
        f"{largest['CPU']:g} CPUs and {largest['GPU']:g} GPUs); lower --cpus-per-{what} or --gpus-per-{what}"
    )


def has_gpus() -> bool:
    """Whether the cluster has a GPU now, or can be given one."""
    return ray.cluster_resources().get("GPU", 0) > 0 or can_grow_by({"GPU": 1}) is True


def _status(address: str) -> Any:
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated import autoscaler_pb2

    reply = autoscaler_pb2.GetClusterStatusReply()  # pyright: ignore[reportAttributeAccessIssue]
    reply.ParseFromString(GcsClient(address).get_cluster_status(timeout_s=int(_SECONDS_TO_ANSWER)))
    return reply
