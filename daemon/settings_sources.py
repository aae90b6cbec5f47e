"""Settings of where telemetry comes from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from daemon.units import Duration, Tree


class StaticTargets(Tree):
    targets: list[str] = Field(min_length=1)
    """host:port of each exporter."""
    job: str = ""
    """Kind of exporter (dcgm, vllm, sglang, node, haproxy); found out from the page when empty."""
    labels: dict[str, str] = {}
    """Applied to all of them: node, rack, leaf, region, pool, role, version, gpus ("0,1,2,3", or whole names where a
    replica spans nodes), pp (pipeline stages, with gpus listed stage by stage), gpu_count (how many, where nobody can tell which), instance; part (gateway, etcd, storage) of what the service rests on; front of what is probed."""


class DnsTargets(Tree):
    name: str
    type: Literal["A", "SRV"] = "A"
    port: int = Field(default=0, ge=0, le=65535)
    """Needed for A records; SRV brings its own."""
    job: str = ""
    labels: dict[str, str] = {}
    refresh: Duration = 30.0


class PodTargets(Tree):
    selector: str = Field(min_length=1)
    """Label selector of the pods, like app=vllm."""
    namespace: str = ""
    """Empty = all namespaces, which needs the right to list pods in the whole cluster."""
    port: int = Field(ge=1, le=65535)
    """Where the pod shows it."""
    path: str = "/metrics"
    """Of the page."""
    job: str = ""
    """Kind of exporter; found out from the page when empty."""
    labels: dict[str, str] = {}
    """Applied to all of them, over what the cluster says."""
    pool_label: str = ""
    """Label of the pods whose value is the pool."""


class KubernetesTargets(Tree):
    kubeconfig: str = ""
    """Path; empty = the service account of this pod, else $KUBECONFIG, else ~/.kube/config."""
    context: str = ""
    """Of the kubeconfig; empty = its current one."""
    pods: list[PodTargets] = Field(min_length=1)
    """Which pods have a page."""
    rack_labels: list[str] = ["topology.kubernetes.io/rack", "rack"]
    """Node labels that may say the rack; the first that is there counts."""
    leaf_labels: list[str] = ["network.topology.nvidia.com/leaf", "topology.kubernetes.io/leaf", "leaf"]
    """The same for the leaf switch."""
    region_labels: list[str] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"]
    """The same for site or zone."""
    gpu_resources: list[str] = ["nvidia.com/", "amd.com/gpu"]
    """How the names of GPU resources begin: what a pod asks of them is the size of its replica where no GPU names it."""


class HttpSource(Tree):
    interval: Duration = 15.0
    timeout: Duration = 10.0
    """A busy engine answers late: late is not down. Longer than the interval, a page that hangs is told as late as that."""
    burst: int = Field(default=32, ge=1, le=1000)
    """Targets fetched together. Larger costs less CPU and loads the network in bursts."""
    static: list[StaticTargets] = []
    file_sd: list[str] = []
    """Paths or globs of Prometheus file_sd files, JSON or YAML."""
    dns: list[DnsTargets] = []
    kubernetes: KubernetesTargets | None = None
    """Pods found by the API of a cluster, see docs/en/backends/kubernetes.md."""
    engines: dict[str, str] = {}
    """Load balancer's server name -> engine (its instance label or address), where the names differ."""
    bearer_token_file: str = ""
    username: str = ""
    password_file: str = ""
    ca_file: str = ""


class PrometheusSource(Tree):
    url: str
    """Base URL of Prometheus or a store with its API."""
    history: bool = True
    """Read the past from it once, at the first start."""
    history_span: Duration = 28 * 86400.0
    live: bool = False
    """Read current values from it instead of (or beside) the exporters."""
    interval: Duration = 30.0
    bearer_token_file: str = ""


class NvmlSource(Tree):
    enabled: bool = True
    interval: Duration = 15.0
    call_timeout: Duration = 2.0


class SysfsSource(Tree):
    root: str = "/sys/class/infiniband"
    interval: Duration = 15.0


class KernelLogSource(Tree):
    path: str = "/dev/kmsg"
    node: str = ""
    """Name of the node the log is of; this host's when empty."""


class MqttSource(Tree):
    host: str
    port: int = Field(default=1883, ge=1, le=65535)
    topics: list[str] = ["tidewarden-in/#"]
    username: str = ""
    password_file: str = ""
    tls_ca_file: str = ""


class SpotMetadata(Tree):
    url: str = "http://169.254.169.254"
    """Of the cloud's metadata service; the daemon asks for the node it runs on."""
    cloud: Literal["aws", "gcp", "azure"]
    """Whose notices it gives."""
    node: str = ""
    """What the telemetry calls this node; the host's name when empty."""


class SpotTaints(Tree):
    kubeconfig: str = ""
    """Path; empty = the service account of this pod, else $KUBECONFIG, else ~/.kube/config."""
    context: str = ""
    """Of the kubeconfig; empty = its current one."""
    taints: list[str] = [
        "aws-node-termination-handler/spot-itn",
        "cloud.google.com/impending-node-termination",
        "karpenter.sh/disrupted",
        "ToBeDeletedByClusterAutoscaler",
    ]
    """Keys of taints that mean a node is about to go."""
    warning: Duration = 120.0
    """How long a node stays after the taint was set."""


class SpotSource(Tree):
    files: list[str] = []
    """JSON lines or a JSON list of {"node": .., "until": time}; one that does not exist says nothing."""
    metadata: SpotMetadata | None = None
    """The metadata address of a cloud."""
    kubernetes: SpotTaints | None = None
    """Taints of nodes."""
    interval: Duration = 5.0
    """How often they are asked: AWS gives two minutes, GCP and Azure half a minute."""


class SlurmJobs(Tree):
    partitions: list[str] = []
    """Whose jobs are offline work; all of them when empty."""
    nodes: dict[str, str] = {}
    """Node as the telemetry calls it -> as Slurm does, where the two differ."""
    prefix: list[str] = []
    """Put before squeue, such as [sudo, -n, -u, slurm]."""
    conf: str = ""
    """SLURM_CONF; empty = Slurm's own."""
    checkpoint_file: str = ""
    """Path with {id}, {name} and {user} whose newest entry tells when a job was last saved, unless its comment says checkpoint=TIME."""
    timeout: Duration = 10.0
    """For one list; without an answer by then there is none."""


class KubernetesJobs(Tree):
    kubeconfig: str = ""
    """Path; empty = the service account of this pod, else $KUBECONFIG, else ~/.kube/config."""
    context: str = ""
    """Of the kubeconfig; empty = its current one."""
    annotation: str = "tidewarden.io/checkpoint"
    """Of the Job or its pods: when it was last saved, an ISO time or seconds since the epoch."""
    checkpoint_file: str = ""
    """As for Slurm; {id} is NAMESPACE/NAME and fits no path here, {name} is the Job's name."""
    timeout: Duration = 10.0
    """For one list; without an answer by then there is none."""


class RayJobs(Tree):
    url: str
    """Of the dashboard of the Ray head, such as http://127.0.0.1:8265."""
    token_file: str = ""
    """Sent as a bearer token."""
    checkpoint_file: str = ""
    """As for Slurm; {id} is the submission id. Metadata of the job may say checkpoint, nodes and gpus instead."""
    timeout: Duration = 10.0
    """For one list; without an answer by then there is none."""


class JobsSource(Tree):
    slurm: SlurmJobs | None = None
    """Slurm's queue, by squeue --json."""
    kubernetes: KubernetesJobs | None = None
    """Pods of Jobs, of the training operator and of Volcano that hold GPUs, with Kueue's queues."""
    ray: RayJobs | None = None
    """Ray's jobs."""
    interval: Duration = 30.0
    """How often they are listed; below tuning.stale, else a list is stale before the next."""


class Sources(Tree):
    http: HttpSource | None = None
    prometheus: PrometheusSource | None = None
    nvml: NvmlSource | None = None
    sysfs: SysfsSource | None = None
    kernel_log: list[KernelLogSource] = []
    mqtt: MqttSource | None = None
    jobs: JobsSource | None = None
    """Offline jobs and when each was last saved, so that the one is recalled that loses least: docs/en/jobs.md."""
    spot: SpotSource | None = None
    """Notices that spot or preemptible nodes are about to be taken back: docs/en/pools.md."""
