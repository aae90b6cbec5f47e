"""Settings of the systems that carry actions out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from daemon.units import Duration, Tree

QUEUES = ("ClusterQueue", "Queue")
WORKLOADS = ("Deployment", "StatefulSet", "LeaderWorkerSet")


class CommandBackend(Tree):
    kind: Literal["command"]
    argv: list[str] = Field(min_length=1)
    """The program with its arguments; never run through a shell."""
    timeout: Duration = 30.0
    env: dict[str, str] = {}


class HAProxyProcess(Tree):
    socket: str
    """Path of a stats socket with level admin, or ADDRESS:PORT."""
    state_path: str = ""
    """Where a reload of this process finds the weights we set; its server-state-file. Empty = a reload forgets them."""


class HAProxyBackend(Tree):
    kind: Literal["haproxy"]
    processes: list[HAProxyProcess] = Field(min_length=1)
    """Every HAProxy process that serves the route."""
    engines: dict[str, str] = {}
    """Server name, or BACKEND/SERVER -> engine, where neither name nor address of the server is the engine's."""
    backends: list[str] = []
    """HAProxy backends that may be touched; empty = all."""
    zero: Literal["weight", "drain", "maint"] = "weight"
    """How a weight of 0 is set; drain and maint show on the status page."""
    admit_map: str = ""
    """Path of the map that haproxy.cfg asks for the share let in, in per cent; docs/en/gateway.md. Empty = it limits nothing."""
    timeout: Duration = 2.0


class NginxBackend(Tree):
    kind: Literal["nginx"]
    files: list[str] = Field(min_length=1)
    """Include files with the server lines of an upstream; nothing but their weights is touched."""
    test: list[str] = Field(default=["nginx", "-t"], min_length=1)
    """Run before every reload; what it refuses is taken back."""
    reload: list[str] = Field(default=["nginx", "-s", "reload"], min_length=1)
    """Makes nginx read the files."""
    pid_path: str = "/run/nginx.pid"
    """Of the master process: its workers show whether a reload has taken place."""
    engines: dict[str, str] = {}
    """Server address -> engine, where it is not the engine's own."""
    timeout: Duration = 10.0


class KubernetesBackend(Tree):
    kind: Literal["kubernetes"]
    """The API of a cluster: docs/en/backends/kubernetes.md."""
    kubeconfig: str = ""
    """Path; empty = the service account of this pod, else $KUBECONFIG, else ~/.kube/config."""
    context: str = ""
    """Of the kubeconfig; empty = its current one."""
    namespace: str = "default"
    """Of inference pods, Services, routes and workloads."""
    nodes: dict[str, str] = {}
    """Node of the telemetry -> Kubernetes node, where neither name nor hostname label is the same."""
    evict: Literal["gpu", "all", "none"] = "gpu"
    """Pods that are asked to leave an isolated node: those that hold GPUs, all, or none. DaemonSet pods never are."""
    evict_timeout: Duration = 60.0
    """How long a disruption budget is waited for; never longer than two fifths of the step's deadline."""
    gpu_resources: list[str] = ["nvidia.com/", "amd.com/gpu"]
    """How the names of GPU resources begin."""
    taint: Literal["", "NoSchedule", "NoExecute"] = ""
    """Effect of a taint tidewarden.io/isolated beside the cordon; empty = none."""
    pools: dict[str, str] = {}
    """Pool -> [NAMESPACE/]KIND/NAME of its Deployment, StatefulSet or LeaderWorkerSet."""
    avoid: bool = False
    """Whether nodes whose rack cannot feed another replica get a soft taint before replicas are added; off = it is only said."""
    drain: Duration = 30.0
    """How long the last requests of a pod that is to go are waited for."""
    metrics_port: int = Field(default=8000, ge=1, le=65535)
    """Of the pods: their page says how many requests they have."""
    label: str = ""
    """Label of the pods that is "true" while their Service or InferencePool selects them; empty = labels are not touched."""
    routes: list[str] = []
    """HTTPRoutes whose weights may be set."""
    services: dict[str, str] = {}
    """Engine -> the Service that holds it alone, for weights; region -> the Service or ServiceImport that leads there."""
    offline_namespace: str = ""
    """Of the Jobs that lent nodes go to; empty = nothing is lent."""
    offline_selector: str = "tidewarden.io/offline=true"
    """Label selector of the Jobs that may be suspended and resumed."""
    offline_queue: str = ""
    """ClusterQueue/NAME of Kueue or Queue/NAME of Volcano whose GPUs follow the lent nodes; empty = plain Jobs are suspended."""
    lease: str = ""
    """[NAMESPACE/]NAME of a Lease: of several instances only its holder acts. Empty = this is the only one."""
    events: bool = True
    """Write an Event on every object that is changed."""
    timeout: Duration = 10.0
    """For one request."""

    @field_validator("pools")
    @classmethod
    def _workloads(cls, pools: dict[str, str]) -> dict[str, str]:
        for pool, name in pools.items():
            parts = name.split("/")
            if len(parts) not in (2, 3) or not all(parts) or parts[-2] not in WORKLOADS:
                raise ValueError(
                    f"{pool}: {name!r} is no workload; write [NAMESPACE/]KIND/NAME, KIND one of {', '.join(WORKLOADS)}"
                )
        return pools

    @field_validator("offline_queue")
    @classmethod
    def _queue(cls, name: str) -> str:
        kind, _, queue = name.partition("/")
        if name and (kind not in QUEUES or not queue or "/" in queue):
            raise ValueError(f"{name!r} is no queue; write KIND/NAME, KIND one of {', '.join(QUEUES)}")
        return name

    @model_validator(mode="after")
    def _placed(self) -> KubernetesBackend:
        if self.offline_queue and not self.offline_namespace:
            raise ValueError("offline_queue needs offline_namespace: where the jobs of the queue are")
        return self


class SlurmBackend(Tree):
    kind: Literal["slurm"]
    """Drains and reservations of a Slurm cluster: docs/en/backends/slurm.md."""
    partitions: list[str] = Field(min_length=1)
    """Partitions of offline jobs: these are requeued when a node is recalled, all others are left alone."""
    user: str = "root"
    """Who may use the reservations that keep offline jobs away, besides root."""
    prefix: list[str] = []
    """Before every command, such as [sudo, -u, slurm]."""
    conf: str = ""
    """SLURM_CONF; empty = where the commands find it by themselves."""
    nodes: dict[str, str] = {}
    """Node of the telemetry -> node of Slurm, where they are called differently."""
    timeout: Duration = 10.0
    """For one command."""


class VllmBackend(Tree):
    kind: Literal["vllm"]
    """Sleep and wake of vLLM engines: docs/en/backends/vllm.md."""
    pools: dict[str, list[str]] = Field(min_length=1)
    """Pool -> HOST:PORT of each of its engines."""
    level: Literal[1, 2] = 1
    """1 keeps the weights in host memory and wakes in seconds, 2 throws them away."""
    reroute: str = ""
    """Name of the backend that takes an engine out of the routing first; empty = nobody does."""
    drain: Duration = 30.0
    """How long its last requests are waited for; one that is still busy then stays awake."""
    timeout: Duration = 60.0
    """For one answer; a wake brings the weights back."""


class RayBackend(Tree):
    kind: Literal["ray"]
    """Deployments of Ray Serve and jobs of Ray: docs/en/backends/ray.md."""
    address: str = "http://127.0.0.1:8265"
    """URL of the dashboard."""
    pools: dict[str, str] = {}
    """Pool -> APPLICATION/DEPLOYMENT of Serve."""
    nodes: dict[str, str] = {}
    """Node of the telemetry -> name or address of Ray's node, where they are called differently."""
    offline_entrypoint: str = ""
    """Shell command of the job that a lent node gets; empty = nothing is lent."""
    offline_runtime_env: dict[str, Any] = {}
    """Its runtime environment, as Ray takes it."""
    token_path: str = ""
    """File with the token of a cluster that asks for one."""
    timeout: Duration = 10.0
    """For one request."""

    @field_validator("address")
    @classmethod
    def _url(cls, address: str) -> str:
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"{address!r} is no URL; write http://HOST:PORT of the dashboard")
        return address.rstrip("/")

    @field_validator("pools")
    @classmethod
    def _deployments(cls, pools: dict[str, str]) -> dict[str, str]:
        for pool, name in pools.items():
            if len([part for part in name.split("/") if part]) != 2 or name.count("/") != 1:
                raise ValueError(f"{pool}: {name!r} is no deployment; write APPLICATION/DEPLOYMENT")
        return pools


class SystemdBackend(Tree):
    kind: Literal["systemd"]
    """Instances of template units: docs/en/backends/systemd.md."""
    pools: dict[str, dict[str, str]] = Field(min_length=1)
    """Pool -> unit of each instance, first in last out -> HOST:PORT of its engine."""
    command: list[str] = Field(default=["systemctl"], min_length=1)
    """Such as [sudo, systemctl]."""
    reroute: str = ""
    """Name of the backend that takes an engine out of the routing before its unit stops; empty = nobody does."""
    drain: Duration = 30.0
    """How long its last requests are waited for; what is left then has the unit's TimeoutStopSec."""
    timeout: Duration = 10.0
    """For one command."""


BackendTree = (
    CommandBackend
    | HAProxyBackend
    | NginxBackend
    | KubernetesBackend
    | SlurmBackend
    | VllmBackend
    | RayBackend
    | SystemdBackend
)
