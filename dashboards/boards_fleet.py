"""Dashboards of the hardware: GPU health, network, stragglers."""

from __future__ import annotations

from daemon.patterns import PATTERNS
from dashboards.panel import Board, Panel, Query, Words
from dashboards.query import gauge, mean, own, rate

GPU = "{{Hostname}} GPU {{gpu}}"
PORT = "{{instance}} {{device}}"
TOP = 20
"""Lines of a plot by entity: more cannot be told apart, however large the fleet is."""
NO_FAULT = Words("no such fault since the start", "启动以来没有此类情况")


def top(expr: str, number: int = TOP) -> str:
    return f"topk({number}, {expr})"


def kinds(*families: str) -> str:
    """Matcher of the incident kinds of these families."""
    found = [kind for kind, pattern in PATTERNS.items() if pattern.family in families]
    return f'kind=~"{"|".join(found)}"'


def _against_peers(expr: str, by: str) -> str:
    """Each over the median of those of the same sort: 1 = like its peers."""
    return f"({expr}) / on ({by}) group_left () (quantile by ({by}) (0.5, {expr}) > 0)"


GPUS = Board(
    "tidewarden-gpu",
    Words("Tidewarden / GPU health", "Tidewarden / GPU 健康"),
    Words("Errors, heat, power, memory of each GPU.", "每块 GPU 的错误、温度、功耗与显存。"),
    (
        Panel(Words("GPUs seen", "可见 GPU 数"), Words("GPUs whose exporter answers now.", "当前导出器有响应的 GPU 数。"), "short",
              (Query(f"count({gauge('gpu', 'util_ratio')})", "GPUs"),), "stat", 6),
        Panel(Words("GPU incidents open", "未关闭的 GPU 事件"), Words("Open incidents of hardware faults.", "尚未关闭的硬件故障事件。"), "short",
              (Query(f"sum({own('incidents_open', kinds('fault'))})", "open"),), "stat", 6, limits=((1, "red"),)),
        Panel(Words("Hottest GPU", "最高 GPU 温度"), Words("Core temperature of the hottest GPU.", "最热 GPU 的核心温度。"), "celsius",
              (Query(f"max({gauge('gpu', 'temp_c')})", "max"),), "stat", 6, limits=((80, "orange"), (88, "red"))),
        Panel(Words("Power of all GPUs", "GPU 总功耗"), Words("Board power, all GPUs together.", "所有 GPU 板卡功耗之和。"), "watt",
              (Query(f"sum({gauge('gpu', 'power_w')})", "sum"),), "stat", 6),
        Panel(Words("Utilisation", "利用率"), Words("Share of time with a kernel running. Waiting in a collective counts as busy: see tensor activity.", "有内核运行的时间占比；集合通信中的等待也算忙碌，请对照 Tensor 活跃度。"), "percentunit",
              (Query(top(gauge("gpu", "util_ratio")), GPU),)),
        Panel(Words("Tensor activity", "Tensor 活跃度"), Words("Share of cycles in which tensor cores work.", "Tensor Core 工作的周期占比。"), "percentunit",
              (Query(top(gauge("gpu", "tensor_active_ratio")), GPU),)),
        Panel(Words("Temperature", "温度"), Words("Core temperature, the hottest GPUs.", "核心温度（最热的若干 GPU）。"), "celsius",
              (Query(top(gauge("gpu", "temp_c")), GPU),), limits=((88, "red"),)),
        Panel(Words("Memory temperature", "显存温度"), Words("HBM temperature, the hottest GPUs.", "HBM 温度（最热的若干 GPU）。"), "celsius",
              (Query(top(gauge("gpu", "mem_temp_c")), GPU),), limits=((95, "red"),)),
        Panel(Words("Power", "功耗"), Words("Board power, the highest.", "板卡功耗（最高的若干 GPU）。"), "watt",
              (Query(top(gauge("gpu", "power_w")), GPU),)),
        Panel(Words("SM clock", "SM 频率"), Words("The slowest GPUs. An idle GPU lowers its clock and is well.", "频率最低的 GPU；空闲 GPU 降频属正常。"), "hertz",
              (Query(f"bottomk({TOP}, ({gauge('gpu', 'sm_clock_mhz')}) * 1e6)", GPU),)),
        Panel(Words("Time held back by heat or power", "因温度或功耗受限的时间占比"), Words("Share of time the driver held the clock down.", "驱动限制频率的时间占比。"), "percentunit",
              (Query(top(rate("gpu", "thermal_violation_ratio")), f"{GPU} heat"), Query(top(rate("gpu", "power_violation_ratio")), f"{GPU} power"))),
        Panel(Words("Memory in use", "显存占用"), Words("HBM in use. Engines reserve most of it at their start.", "已用 HBM；推理引擎启动时会预留大部分显存。"), "bytes",
              (Query(top(gauge("gpu", "hbm_used_bytes")), GPU),)),
        Panel(Words("Last XID code", "最近的 XID 代码"), Words("The gauge holds the last code and never clears: it is a code, not a count. 0 = none since the driver was loaded.", "该指标保存最近一次代码且不会清除：它是代码而非计数；0 表示驱动加载以来没有。"), "none",
              (Query(top(gauge("gpu", "xid_code"), 50), GPU),), "table"),
        Panel(Words("Corrected memory errors", "可纠正显存错误"), Words("Single-bit errors per second. A storm of them asks for a drain.", "每秒单比特错误；出现风暴时应排空该 GPU。"), "cps",
              (Query(top(rate("gpu", "ecc_sbe_per_s")), GPU),)),
        Panel(Words("Uncorrected memory errors", "不可纠正显存错误"), Words("Double-bit errors per second; anything above zero is a fault.", "每秒双比特错误；大于零即为故障。"), "cps",
              (Query(top(rate("gpu", "ecc_dbe_per_s")), GPU),), limits=((1e-9, "red"),)),
        Panel(Words("Rows remapped", "重映射行数"), Words("Spare rows in use after uncorrectable errors; a GPU has a limited number.", "不可纠正错误后启用的备用行；每块 GPU 数量有限。"), "short",
              (Query(top(gauge("gpu", "rows_remapped_uncorrectable")), GPU),)),
        Panel(Words("NVLink errors", "NVLink 错误"), Words("CRC errors per second.", "每秒 CRC 错误。"), "cps",
              (Query(top(rate("gpu", "nvlink_crc_per_s")), GPU),),
              quiet=Words("needs both CRC fields; deploy/exporters/dcgm-counters.csv turns them on", "需要两个 CRC 字段；deploy/exporters/dcgm-counters.csv 会启用它们")),
        Panel(Words("PCIe packets sent again", "PCIe 重传"), Words("Replays per second.", "每秒 PCIe 重传次数。"), "cps",
              (Query(top(rate("gpu", "pcie_replay_per_s")), GPU),)),
        Panel(Words("PCIe links below their width", "低于额定宽度的 PCIe 链路"), Words("Width over the most the link can do; below 1 it trained down.", "当前宽度与最大宽度之比；小于 1 表示链路降级。"), "percentunit",
              (Query(f"bottomk({TOP}, ({gauge('gpu', 'pcie_link_width')}) / on (instance, gpu, Hostname) ({gauge('gpu', 'pcie_link_width_max')}))", GPU),)),
    ),
    "DCGM_FI_DEV_GPU_TEMP",
)  # fmt: skip

NETWORK = Board(
    "tidewarden-network",
    Words("Tidewarden / Network", "Tidewarden / 网络"),
    Words("RDMA ports: load, congestion, losses, lane errors.", "RDMA 端口：负载、拥塞、丢包与链路错误。"),
    (
        Panel(Words("Network incidents open", "未关闭的网络事件"), Words("Open incidents of congestion or links.", "尚未关闭的拥塞或链路事件。"), "short",
              (Query(f"sum({own('incidents_open', kinds('congestion'))})", "open"),), "stat", 6, limits=((1, "red"),)),
        Panel(Words("Ports that are not active", "非活动端口"), Words("InfiniBand or RoCE ports in a state other than ACTIVE (4).", "状态不是 ACTIVE（4）的端口数。"), "short",
              (Query(f"count(({gauge('port', 'state_id')}) != 4) or 0 * count({gauge('port', 'state_id')})", "ports"),), "stat", 6, limits=((1, "orange"),)),
        Panel(Words("Sent by all ports", "总发送"), Words("All RDMA ports together.", "所有 RDMA 端口之和。"), "Bps",
              (Query(f"sum({rate('port', 'tx_bytes_s')})", "sent"),), "stat", 6),
        Panel(Words("Received by all ports", "总接收"), Words("All RDMA ports together.", "所有 RDMA 端口之和。"), "Bps",
              (Query(f"sum({rate('port', 'rx_bytes_s')})", "received"),), "stat", 6),
        Panel(Words("Sent", "发送"), Words("The busiest ports.", "最繁忙的端口。"), "Bps", (Query(top(rate("port", "tx_bytes_s")), PORT),)),
        Panel(Words("Received", "接收"), Words("The busiest ports.", "最繁忙的端口。"), "Bps", (Query(top(rate("port", "rx_bytes_s")), PORT),)),
        Panel(Words("Share of the link rate sent", "链路发送占用率"), Words("Sent bytes over the negotiated rate; above 0.8 queues grow.", "发送速率与协商速率之比；超过 0.8 队列会增长。"), "percentunit",
              (Query(top(f"({rate('port', 'tx_bytes_s')}) / on (instance, device, port) ({gauge('port', 'rate_bytes_s')})"), PORT),), limits=((0.8, "orange"),)),
        Panel(Words("Negotiated rate", "协商速率"), Words("The slowest ports; one below its equals has a bad cable or optic.", "速率最低的端口；低于同类端口说明线缆或光模块有问题。"), "Bps",
              (Query(f"bottomk({TOP}, {gauge('port', 'rate_bytes_s')})", PORT),)),
        Panel(Words("Congestion marks received", "收到的拥塞标记"), Words("ECN marked packets per second at the receiver.", "接收端每秒 ECN 标记包数。"), "pps", (Query(top(rate("port", "ecn_marked_per_s")), PORT),)),
        Panel(Words("Congestion notices handled", "处理的拥塞通知"), Words("CNPs per second that made the sender slow down.", "使发送端降速的每秒 CNP 数。"), "pps", (Query(top(rate("port", "cnp_handled_per_s")), PORT),)),
        Panel(Words("Time stopped by the network", "被网络暂停的时间占比"), Words("PFC: share of time this port was told to stop, all priorities.", "PFC：端口被要求停止发送的时间占比（所有优先级）。"), "percentunit", (Query(top(rate("port", "rx_pause_ratio")), PORT),)),
        Panel(Words("Pause frames sent", "发出的暂停帧"), Words("PFC: this port told the network to stop. A host that leads here is the cause of a storm.", "PFC：端口要求网络停止；此处领先的主机是风暴来源。"), "pps", (Query(top(rate("port", "tx_pause_per_s")), PORT),)),
        Panel(Words("Waiting for credit", "等待信用"), Words("Ticks per second with data queued and no credit.", "每秒有数据排队而无信用的时钟数。"), "cps", (Query(top(rate("port", "xmit_wait_per_s")), PORT),)),
        Panel(Words("Packets sent again", "重传"), Words("Sequence errors at the sender and acknowledge time-outs.", "发送端序列错误与确认超时。"), "pps",
              (Query(top(rate("port", "seq_errors_per_s")), f"{PORT} sequence"), Query(top(rate("port", "ack_timeouts_per_s")), f"{PORT} time-out"))),
        Panel(Words("Out of sequence", "乱序"), Words("Loss, or packets that took different paths.", "丢包，或包走了不同路径。"), "pps", (Query(top(rate("port", "out_of_sequence_per_s")), PORT),)),
        Panel(Words("Lane errors", "链路物理错误"), Words("Symbol errors per second. A counter flat at 255 or 65535 is full, not quiet.", "每秒符号错误；计数停在 255 或 65535 表示已满而非平静。"), "cps", (Query(top(rate("port", "symbol_errors_per_s")), PORT),)),
        Panel(Words("Error rate before correction", "纠错前误码率"), Words("Corrected bits over all bits: rises days before anything is lost.", "已纠正比特占比：在真正丢包前数天开始上升。"), "none",
              (Query(top(f"({rate('port', 'corrected_bits_per_s')}) / on (instance, device) ({rate('port', 'phy_bits_per_s')})"), PORT),)),
        Panel(Words("Receiving software too slow", "接收软件过慢"), Words("Not-ready replies and drops for lack of buffers.", "接收未就绪应答与缓冲不足丢弃。"), "pps",
              (Query(top(rate("port", "rnr_naks_per_s")), f"{PORT} not ready"), Query(top(rate("port", "out_of_buffer_per_s")), f"{PORT} no buffer"))),
    ),
    "node_infiniband_rate_bytes_per_second",
)  # fmt: skip

STRAGGLERS = Board(
    "tidewarden-stragglers",
    Words("Tidewarden / Stragglers", "Tidewarden / 慢节点"),
    Words("Who is slower than its peers: GPUs, replicas.", "谁比同类慢：GPU 与副本。"),
    (
        Panel(Words("Straggler incidents open", "未关闭的慢节点事件"), Words("Open incidents of slow parts.", "尚未关闭的慢部件事件。"), "short",
              (Query(f"sum({own('incidents_open', kinds('straggler'))})", "open"),), "stat", 8, limits=((1, "orange"),)),
        Panel(Words("Parts taken out", "已隔离部件"), Words("Nodes and GPUs isolated by tidewarden.", "被 tidewarden 隔离的节点与 GPU。"), "short",
              (Query(own("entities_isolated"), "{{instance}}"),), "stat", 8),
        Panel(Words("Slow incidents opened", "新开慢节点事件"), Words("Opened within the last hour.", "最近一小时新开的事件。"), "short",
              (Query(f"sum(increase({own('incidents_opened_total', kinds('straggler'))}[1h]))", "opened"),), "stat", 8),
        Panel(Words("Suspects", "嫌疑对象"), Words("What open incidents say of whom, and how sure they are. Look at the incident page for the evidence.", "未关闭事件指向的对象及其置信度；证据见事件页面。"), "percentunit",
              (Query(f"sort_desc({own('suspect_score_ratio')})", "{{entity}} {{kind}}"),), "table", 24, quiet=Words("no incident is open", "没有未关闭的事件")),
        Panel(Words("Time a token takes, against the pool", "每词元耗时相对同池"), Words("Mean time between tokens of a replica over the median of the replicas of its model. 1 = like its peers; load differs, so look for what lasts.", "副本平均词元间隔与同模型中位数之比；1 表示与同类相同。负载不同会造成波动，请关注持续偏高者。"), "none",
              (Query(top(_against_peers(mean("engine", "itl_s", "job, instance, model_name"), "job, model_name")), "{{instance}} {{model_name}}"),), limits=((1.3, "orange"),)),
        Panel(Words("Time to first token, against the pool", "首词元时间相对同池"), Words("Mean time to first token over the median of the replicas of its model.", "副本首词元平均时间与同模型中位数之比。"), "none",
              (Query(top(_against_peers(mean("engine", "ttft_s", "job, instance, model_name"), "job, model_name")), "{{instance}} {{model_name}}"),), limits=((1.5, "orange"),)),
        Panel(Words("SM clock against equals", "SM 频率相对同型号"), Words("Clock over the median of GPUs of the same model; the lowest.", "频率与同型号中位数之比（最低者）。"), "percentunit",
              (Query(f"bottomk({TOP}, {_against_peers(gauge('gpu', 'sm_clock_mhz'), 'modelName')})", GPU),), limits=()),
        Panel(Words("Warmer than equals", "比同型号更热"), Words("Degrees above the median of GPUs of the same model.", "高于同型号中位数的温度。"), "celsius",
              (Query(top(f"({gauge('gpu', 'temp_c')}) - on (modelName) group_left () quantile by (modelName) (0.5, {gauge('gpu', 'temp_c')})"), GPU),), limits=((15, "orange"),)),
        Panel(Words("Time held back by heat", "因温度受限的时间占比"), Words("Share of time the clock was held down by heat.", "因温度限制频率的时间占比。"), "percentunit", (Query(top(rate("gpu", "thermal_violation_ratio")), GPU),)),
        Panel(Words("Tensor activity of the least busy", "最低 Tensor 活跃度"), Words("In one tensor-parallel group all should be alike.", "同一张量并行组内应当一致。"), "percentunit",
              (Query(f"bottomk({TOP}, ({gauge('gpu', 'tensor_active_ratio')}) > 0.02)", GPU),), quiet=Words("no GPU is busy", "没有繁忙的 GPU")),
        Panel(Words("CPU in use", "CPU 使用率"), Words("Share of the host's CPU time that is not idle: a starved host slows its GPUs.", "主机非空闲 CPU 时间占比；CPU 不足会拖慢 GPU。"), "percentunit",
              (Query(top(f"1 - avg by (instance) ({rate('node', 'cpu_idle_s_per_s')})"), "{{instance}}"),)),
        Panel(Words("Processes that wait for I/O", "等待 I/O 的进程"), Words("Processes in state D.", "处于 D 状态的进程数。"), "short", (Query(top(gauge("node", "procs_blocked")), "{{instance}}"),)),
    ),
    "up",
)  # fmt: skip
