"""The dashboard of what stands around the replicas: checklist, stores and starts, offline jobs, gateway, energy."""

from __future__ import annotations

from dashboards.panel import Board, Panel, Query, Words
from dashboards.query import own

CLASSES, POOLS = 'class!=""', 'class=""'

ESTATE = Board(
    "tidewarden-estate",
    Words("Tidewarden / Checklist, stores, jobs, energy", "Tidewarden / 检查清单、存储、任务与能耗"),
    Words("What stands around the replicas: the live checklist, gateway, stores and starts, offline jobs, energy and money.", "副本周边：实时检查清单、网关、存储与启动、离线任务、能耗与费用。"),
    (
        Panel(Words("Checklist", "检查清单"), Words("Items of the cluster's own tier: 1 passes, 0 fails; what is unknown or does not apply has no row.", "本集群所属层级的检查项：1 通过，0 未通过；未知或不适用者不显示。"), "none",
              (Query(own("posture_pass"), "{{item}}"),), "table", limits=((0, "red"), (1, "green"))),
        Panel(Words("What the items measure", "检查项数值"), Words("Each in its own unit, as the page /posture shows it.", "各用自己的单位，与 /posture 页面一致。"), "none",
              (Query(f"{own('posture_value')} == {own('posture_value')}", "{{item}}"),), "table"),
        Panel(Words("Arrivals at the gateway", "网关到达请求"), Words("Requests that reach it, each pool.", "各资源池到达网关的请求。"), "reqps",
              (Query(own("gateway_arrivals_per_second", POOLS), "{{pool}}"),), stacked=True, quiet=Words("no gateway tells of pools", "没有网关上报资源池")),
        Panel(Words("Arrivals by class", "各类别到达请求"), Words("Where a class of requests has a backend or a priority of its own.", "类别有独立后端或优先级时显示。"), "reqps",
              (Query(own("gateway_arrivals_per_second", CLASSES), "{{pool}} {{class}}"),), stacked=True, quiet=Words("no gateway tells of classes", "没有网关上报类别")),
        Panel(Words("Failed at the gateway", "网关失败请求"), Words("Answered with a failure of ours.", "以我方错误答复的请求。"), "reqps",
              (Query(own("gateway_errors_per_second", POOLS), "{{pool}}"),), quiet=Words("no gateway tells of pools", "没有网关上报资源池")),
        Panel(Words("Latency at the gateway", "网关时延"), Words("Mean of whole requests; a gateway knows no percentiles.", "完整请求的平均值；网关不提供分位数。"), "s",
              (Query(own("gateway_latency_seconds", POOLS), "{{pool}}"), Query(own("gateway_latency_seconds", CLASSES), "{{pool}} {{class}}")), quiet=Words("no gateway tells of pools and classes", "没有网关上报资源池与类别")),
        Panel(Words("Let in", "放行比例"), Words("Below 1 customers are refused, as a last resort.", "小于 1 表示作为最后手段拒绝部分请求。"), "percentunit",
              (Query(own("admitted_ratio"), "{{target}}"),), quiet=Words("everybody is let in", "全部放行"), limits=((0, "red"), (1, "green"))),
        Panel(Words("How long replicas take to start", "副本启动耗时"), Words("Measured as they come, by where the weights were read from.", "按权重来源实测。"), "s",
              (Query(own("cold_start_seconds"), "{{pool}} {{source}} {{quantile}}"),), quiet=Words("no replica has started yet", "尚无副本启动")),
        Panel(Words("Read from stores", "存储读取"), Words("All nodes together.", "所有节点之和。"), "Bps",
              (Query(own("store_read_bytes_per_second"), "{{store}} {{source}}"),), quiet=Words("no store is scraped", "未采集存储")),
        Panel(Words("Time of a read", "单次读取耗时"), Words("Mean over the nodes of a store.", "同一存储各节点的平均值。"), "s",
              (Query(own("store_read_seconds"), "{{store}} {{source}}"),), quiet=Words("nothing was read", "没有读取")),
        Panel(Words("Weights to read in", "待预读权重"), Words("Nodes without a pool's weights, before a rise that is forecast.", "预测上升之前尚无权重的节点数。"), "short",
              (Query(own("weights_to_read_in_nodes"), "{{pool}}"),), quiet=Words("no rise is forecast that needs it", "没有需要预读的上升")),
        Panel(Words("Offline jobs", "离线任务"), Words("That run on lent nodes or in the scheduler.", "在出借节点或调度器中运行的任务。"), "short",
              (Query(own("offline_jobs"), "{{instance}}"),), quiet=Words("no list of jobs is read", "未读取任务列表")),
        Panel(Words("Lost if stopped now", "立即停止的损失"), Words("GPU time since the last checkpoint; since the begin where none is known.", "自上次检查点以来的 GPU 时间；未知检查点则从开始计。"), "s",
              (Query(f"topk(20, {own('offline_job_unsaved_gpu_seconds')})", "{{job}}"),), "table", quiet=Words("no job runs", "没有运行中的任务")),
        Panel(Words("Power of racks", "机架功耗"), Words("Drawn by their GPUs now.", "机架内 GPU 当前功耗。"), "watt",
              (Query(f"topk(20, {own('rack_gpu_power_watts')})", "{{rack}}"),), quiet=Words("no rack is known", "未知机架")),
        Panel(Words("Energy of the last day", "最近一天能耗"), Words("Drawn at the GPUs, by pool; idle and lent ones among them. In kWh.", "按资源池（含空闲与出借）的 GPU 能耗，单位 kWh。"), "kwatth",
              (Query(own("energy_day_kwh"), "{{pool}}"),), stacked=True),
        Panel(Words("Energy for a million tokens", "每百万词元能耗"), Words("Of the facility, generated tokens of the last day. In kWh.", "设施能耗，按最近一天生成的词元，单位 kWh。"), "kwatth",
              (Query(own("energy_per_million_tokens_kwh"), "{{pool}}"),)),
        Panel(Words("Money for a million tokens", "每百万词元费用"), Words("In the configured currency.", "以配置的货币计。"), "none",
              (Query(own("cost_per_million_tokens"), "{{pool}}"),), quiet=Words("no price is configured: cost.gpu_hour", "未配置价格：cost.gpu_hour")),
        Panel(Words("GPU-hours saved by scaling", "扩缩容节省的 GPU 小时"), Words("In the last day, against as many GPUs as in the busiest hour.", "最近一天，与最忙小时的 GPU 数相比。"), "short",
              (Query(own("saved_day_gpu_hours"), "{{pool}}"),), quiet=Words("known after the first whole hour", "首个完整小时后可知")),
    ),
)  # fmt: skip
