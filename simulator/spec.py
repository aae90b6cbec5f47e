"""The shape of a simulated cluster: nodes, pools of engines, their speeds."""

from __future__ import annotations

from dataclasses import dataclass

HBM_BYTES = 80 * 2**30
CLOCK_MHZ = 1980.0
POWER_W = 700.0
PORT_BYTES_S = 50e9
RSS_BYTES = 6.5e9
"""Host memory of a fresh engine process."""
CLIENT_TIMEOUT_S = 30.0
"""A client gives up when it has no first token by then."""


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """One pool: replicas of one model behind one route.

    requests_per_s : mean of a weekday's cycle for the whole pool. prompt_tokens, output_tokens : means of
    log-normal lengths with `length_sigma`. prefix_hit_share : prompt tokens found in the cache, mean.
    A decode step takes step_base_s + step_seq_s * batch + step_context_s * context tokens; a prompt token takes
    prefill_token_s. pp : pipeline stages that the tp GPUs of a replica are cut into, in order. accepted : share of drafted
    tokens that the model accepts, 0 = no speculative decoding. sticky_share : requests routed by session instead of by weight alone.
    peak_hour : UTC hour of the daily peak; night_ratio : trough over peak; weekend_ratio : weekend over weekday. kind : see
    daemon.policy.PoolKind.
    """

    name: str
    model: str
    engine: str
    tp: int
    replicas: int
    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    replicas_max: int
    priority: int = 0
    version: str = "v1"
    role: str = "mixed"
    max_num_seqs: int = 256
    kv_blocks: int = 12000
    block_tokens: int = 16
    prefill_token_s: float = 1.0e-4
    step_base_s: float = 0.016
    step_seq_s: float = 6e-5
    step_context_s: float = 4e-8
    length_sigma: float = 0.9
    prefix_hit_share: float = 0.35
    sticky_share: float = 0.0
    cold_start_min_s: float = 60.0
    cold_start_max_s: float = 120.0
    ttft_slo_s: float = 2.0
    itl_slo_s: float = 0.1
    peak_hour: float = 14.0
    night_ratio: float = 0.4
    weekend_ratio: float = 0.8
    load_noise: float = 0.08
    lendable: bool = True
    kind: str = "serving"
    pp: int = 1
    accepted: float = 0.0

    def __post_init__(self) -> None:
        if self.engine not in ("vllm", "sglang"):
            raise ValueError(f"pool {self.name}: engine is {self.engine!r}; use 'vllm' or 'sglang'")
        if not 1 <= self.tp <= 8:
            raise ValueError(f"pool {self.name}: tp is {self.tp}; use 1 to 8, an engine stays on one node")
        if not 0.0 <= self.accepted <= 1.0 or (self.accepted and self.engine != "vllm"):
            raise ValueError(
                f"pool {self.name}: accepted is {self.accepted} with engine {self.engine!r}; use a share from 0 to 1, and 'vllm' above 0"
            )
        if self.pp < 1 or self.tp % self.pp:
            raise ValueError(f"pool {self.name}: pp is {self.pp}; use a divisor of its {self.tp} GPUs")

    @property
    def kv_tokens(self) -> float:
        """Tokens the KV cache of one replica holds."""
        return float(self.kv_blocks * self.block_tokens)


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """A whole cluster.

    device_spread : standard deviation of the personal speed of a GPU. engine_noise : the same of a replica's step
    over time. odd_nodes : nodes, by number, whose GPUs are `odd_sku`. scrape_jitter_s : a reading is this much late at most. telemetry_loss : share of readings that fail for no
    reason. uplinks : links of each leaf's switch to the spine, and an exporter of the switches; 0 = nobody scrapes them. trace : a request trace replayed into `trace_pool` instead of drawn arrivals, `trace_speed` times as
    fast as recorded. is_scattered : replicas start where most is free, as under a scheduler that
    spreads. step_s : length of a physics step while something is wrong or on the move; calm_step_s : otherwise.
    """

    nodes: int = 16
    gpus_per_node: int = 8
    nodes_per_rack: int = 4
    racks_per_leaf: int = 2
    ports_per_node: int = 2
    sku: str = "NVIDIA H100 80GB HBM3"
    device_spread: float = 0.014
    engine_noise: float = 0.012
    odd_sku: str = "NVIDIA H200"
    odd_nodes: tuple[int, ...] = ()
    pools: tuple[PoolSpec, ...] = ()
    scrape_jitter_s: float = 0.5
    telemetry_loss: float = 0.002
    trace: str = ""
    trace_pool: str = ""
    trace_speed: float = 1.0
    is_scattered: bool = False
    uplinks: int = 0
    step_s: float = 5.0
    calm_step_s: float = 15.0

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.gpus_per_node < 1:
            raise ValueError(f"a world needs nodes with GPUs, got {self.nodes} x {self.gpus_per_node}")
        if not 0.0 <= self.telemetry_loss < 1.0:
            raise ValueError(f"telemetry_loss is {self.telemetry_loss}; use a share from 0 to below 1")
        names = [pool.name for pool in self.pools]
        if len(set(names)) != len(names):
            raise ValueError(f"pool names must differ, got {names}")
        if self.trace and self.trace_pool not in names:
            raise ValueError(f"trace_pool is {self.trace_pool!r}; use one of {names}")
        for pool in self.pools:
            if pool.tp > self.gpus_per_node:
                raise ValueError(f"pool {pool.name}: tp {pool.tp} exceeds {self.gpus_per_node} GPUs a node")

    def sku_of(self, node: int) -> str:
        return self.odd_sku if node in self.odd_nodes else self.sku

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node
