"""Dashboards of the service: overview, serving, capacity ahead, actions, the daemon itself."""

from __future__ import annotations

from dashboards.boards_fleet import NO_FAULT, kinds, top
from dashboards.panel import Board, Panel, Query, Words
from dashboards.query import gauge, own, quantile, rate

ENGINE = "{{instance}} {{model_name}}"
BY_MODEL = "job, model_name"
BY_ENGINE = "job, instance, model_name"
MODEL = "{{model_name}} ({{job}})"

CRITICAL, WARNING, UNKNOWN = 'severity="critical"', 'severity="warning"', 'result="unknown"'

OVERVIEW = Board(
    "tidewarden-overview",
    Words("Tidewarden / Fleet overview", "Tidewarden / 集群总览"),
    Words("Health of the cluster, what is open, what is done about it.", "集群健康状况、未关闭的事件以及正在采取的措施。"),
    (
        Panel(Words("Critical incidents", "严重事件"), Words("Open incidents of severity critical.", "未关闭的严重事件。"), "short",
              (Query(f"sum({own('incidents_open', CRITICAL)})", "critical"),), "stat", 4, limits=((1, "red"),)),
        Panel(Words("Warnings", "警告"), Words("Open incidents of severity warning.", "未关闭的警告事件。"), "short",
              (Query(f"sum({own('incidents_open', WARNING)})", "warning"),), "stat", 4, limits=((1, "orange"),)),
        Panel(Words("GPUs usable", "可用 GPU"), Words("GPUs that are not isolated.", "未被隔离的 GPU。"), "short", (Query(own("gpus_usable"), "{{instance}}"),), "stat", 4),
        Panel(Words("GPUs lent", "已出借 GPU"), Words("GPUs with offline work now.", "正在运行离线任务的 GPU。"), "short", (Query(own("gpus_lent"), "{{instance}}"),), "stat", 4),
        Panel(Words("Targets silent", "无响应目标"), Words("Exporters that do not answer.", "没有响应的导出器。"), "short", (Query(own("targets", 'state="down"'), "{{instance}}"),), "stat", 4, limits=((1, "orange"),)),
        Panel(Words("Waits for approval", "等待批准"), Words("Actions that wait for an operator.", "等待操作员批准的动作。"), "short", (Query(own("steps_awaiting_approval"), "{{instance}}"),), "stat", 4, limits=((1, "blue"),)),
        Panel(Words("Requests in flight", "在途请求"), Words("Running and waiting, each pool.", "各资源池正在运行与等待的请求。"), "short", (Query(own("pool_concurrency_requests"), "{{pool}}"),), stacked=True),
        Panel(Words("Load of the ready replicas", "就绪副本负载"), Words("Requests over what the ready replicas hold within the objective; 1 = full.", "请求数与就绪副本在目标内可承载量之比；1 表示满载。"), "percentunit", (Query(own("pool_load_ratio"), "{{pool}}"),), limits=((0.9, "orange"),)),
        Panel(Words("Requests over the objective", "超出目标的请求"), Words("Share of requests that missed the time to first token.", "首词元时间超出目标的请求占比。"), "percentunit", (Query(own("pool_over_slo_ratio"), "{{pool}}"),)),
        Panel(Words("Replicas", "副本"), Words("Engines that exist, and those that serve.", "存在的引擎与正在服务的引擎。"), "short", (Query(own("pool_replicas"), "{{pool}}"), Query(own("pool_ready_replicas"), "{{pool}} ready"))),
        Panel(Words("Open incidents", "未关闭事件"), Words("By kind of incident.", "按事件类型统计。"), "short", (Query(f"sum by (kind) ({own('incidents_open')}) > 0", "{{kind}}"),), stacked=True, quiet=Words("no incident is open", "没有未关闭的事件")),
        Panel(Words("GPU utilisation", "GPU 利用率"), Words("Mean of the fleet, tensor activity beside it.", "全集群平均值，并列 Tensor 活跃度。"), "percentunit",
              (Query(f"avg({gauge('gpu', 'util_ratio')})", "utilisation"), Query(f"avg({gauge('gpu', 'tensor_active_ratio')})", "tensor"))),
        Panel(Words("Memory left on hosts", "主机剩余内存"), Words("The least; the kernel kills when it is gone.", "剩余最少的主机；耗尽时内核会杀进程。"), "percentunit",
              (Query(f"bottomk(20, ({gauge('node', 'mem_available_bytes')}) / on (instance) ({gauge('node', 'mem_total_bytes')}))", "{{instance}}"),)),
        Panel(Words("Free space on hosts", "主机剩余磁盘"), Words("Root filesystem, the least.", "根文件系统（剩余最少者）。"), "percentunit",
              (Query(f"bottomk(20, max by (instance) ({gauge('node', 'fs_avail_bytes')}) / max by (instance) ({gauge('node', 'fs_size_bytes')}))", "{{instance}}"),)),
    ),
    "up",
)  # fmt: skip

SERVING = Board(
    "tidewarden-serving",
    Words("Tidewarden / Serving and KV cache", "Tidewarden / 服务与 KV 缓存"),
    Words("Latency, queues, KV cache, error budget of each pool.", "各资源池的时延、排队、KV 缓存与错误预算。"),
    (
        Panel(Words("Error budget burn", "错误预算消耗"), Words("Share of requests over the objective, over the share that may be; above 1 the budget shrinks, above 14 it is gone within two days.", "超目标请求占比与允许占比之比；大于 1 预算减少，大于 14 两天内耗尽。"), "none",
              (Query(f"{own('pool_over_slo_ratio')} / on (job, instance, pool) {own('pool_slo_miss_allowed_ratio')}", "{{pool}}"),), limits=((1, "orange"), (14, "red"))),
        Panel(Words("Time to first token against the objective", "首词元时间与目标"), Words("95 %, of the slowest replica.", "最慢副本的 95 分位。"), "s",
              (Query(own("pool_ttft_p95_seconds"), "{{pool}}"), Query(own("pool_ttft_objective_seconds"), "{{pool}} objective"))),
        Panel(Words("Time to first token, median", "首词元时间中位数"), Words("Includes the time in the queue.", "包含排队时间。"), "s", (Query(quantile(0.5, "engine", "ttft_s", BY_MODEL), MODEL),)),
        Panel(Words("Time to first token, 95 %", "首词元时间 95 分位"), Words("Includes the time in the queue.", "包含排队时间。"), "s", (Query(quantile(0.95, "engine", "ttft_s", BY_MODEL), MODEL),)),
        Panel(Words("Time between tokens, 95 %", "词元间隔 95 分位"), Words("What a reader feels as speed.", "读者感受到的速度。"), "s", (Query(quantile(0.95, "engine", "itl_s", BY_MODEL), MODEL),)),
        Panel(Words("Whole request, 95 %", "整个请求 95 分位"), Words("From arrival to the last token.", "从到达到最后一个词元。"), "s", (Query(quantile(0.95, "engine", "e2e_s", BY_MODEL), MODEL),)),
        Panel(Words("Requests running", "运行中的请求"), Words("In the batch. Flat at a number: the limit of sequences binds.", "批内请求；持平在某数值说明受序列数上限限制。"), "short", (Query(top(gauge("engine", "running", BY_ENGINE)), ENGINE),)),
        Panel(Words("Requests waiting", "等待中的请求"), Words("Waiting for capacity.", "等待容量的请求。"), "short", (Query(top(gauge("engine", "waiting", BY_ENGINE)), ENGINE),)),
        Panel(Words("KV cache in use", "KV 缓存占用"), Words("Of each engine: shares are never added up.", "按引擎显示：占比不能相加。"), "percentunit", (Query(top(gauge("engine", "kv_used_ratio", BY_ENGINE)), ENGINE),), limits=((0.9, "orange"),)),
        Panel(Words("KV cache of the pools", "各池 KV 缓存"), Words("Mean of the replicas, and the fullest.", "副本平均值与最满者。"), "percentunit", (Query(own("pool_kv_used_ratio"), "{{pool}}"), Query(own("pool_kv_used_max_ratio"), "{{pool}} fullest"))),
        Panel(Words("Preemptions", "抢占"), Words("Requests thrown out of the batch for lack of KV cache; work done twice.", "因 KV 缓存不足被移出批次的请求；意味着重复计算。"), "reqps", (Query(top(rate("engine", "preemptions_per_s", BY_ENGINE)), ENGINE),)),
        Panel(Words("Prefix hits", "前缀命中率"), Words("Share of prompt tokens found in the cache.", "在缓存中找到的提示词元占比。"), "percentunit",
              (Query(f"({rate('engine', 'prefix_hits_s', BY_ENGINE)}) / (({rate('engine', 'prefix_queries_s', BY_ENGINE)}) > 0)", ENGINE),)),
        Panel(Words("Tokens generated", "生成词元"), Words("Per model, all replicas.", "按模型，所有副本。"), "short", (Query(rate("engine", "generation_tokens_s", BY_MODEL), MODEL),), stacked=True),
        Panel(Words("Prompt tokens", "提示词元"), Words("Per model, cached ones included.", "按模型，含缓存命中。"), "short", (Query(rate("engine", "prompt_tokens_s", BY_MODEL), MODEL),), stacked=True),
        Panel(Words("Requests finished", "完成的请求"), Words("Per model, all replicas.", "按模型，所有副本。"), "reqps", (Query(rate("engine", "requests_done_per_s", BY_MODEL), MODEL),), stacked=True),
        Panel(Words("Serving incidents", "服务类事件"), Words("Open ones by kind.", "按类型统计未关闭事件。"), "short", (Query(f"sum by (kind) ({own('incidents_open', kinds('serving'))})", "{{kind}}"),)),
    ),
    "up",
)  # fmt: skip

CAPACITY = Board(
    "tidewarden-capacity",
    Words("Tidewarden / Capacity forecast", "Tidewarden / 容量预测"),
    Words("Demand and GPUs ahead, how good the forecasts were, when GPUs are free.", "未来需求与 GPU、预测的准确度以及 GPU 空闲时段。"),
    (
        Panel(Words("GPUs may run short in", "GPU 可能短缺于"), Words("Time until the 90 % level exceeds what is usable; no value = not within the horizon.", "90 % 水平超过可用量之前的时间；无值表示预测期内不会。"), "s", (Query(own("capacity_short_seconds"), "{{instance}}"),), "stat", 6, quiet=Words("GPUs do not run short within the horizon", "预测期内不会短缺")),
        Panel(Words("Chance of running short", "短缺概率"), Words("Share of sampled futures that run short within the horizon.", "预测期内出现短缺的抽样占比。"), "percentunit", (Query(own("capacity_short_chance"), "{{instance}}"),), "stat", 6, limits=((0.1, "orange"), (0.5, "red"))),
        Panel(Words("GPU-hours short", "短缺 GPU 小时"), Words("At the 90 % level, within the horizon.", "预测期内 90 % 水平。"), "short", (Query(own("capacity_deficit_gpu_hours"), "{{instance}}"),), "stat", 6),
        Panel(Words("GPU-hours lent", "已出借 GPU 小时"), Words("Given to offline work in leases that ended.", "已结束租约中给予离线任务的时间。"), "short", (Query(f"{own('gpu_lent_seconds_total')} / 3600", "{{instance}}"),), "stat", 6),
        Panel(Words("Demand and its bands", "需求与预测区间"), Words("Requests in flight against what is expected one hour ahead at 10, 50, 90 %.", "在途请求与提前一小时的 10、50、90 % 预测。"), "short",
              (Query(own("pool_concurrency_requests"), "{{pool}} now"), Query(own("forecast_requests", 'lead="1h"'), "{{pool}} in 1 h, {{quantile}}"))),
        Panel(Words("Expected ahead", "未来预期"), Words("Median at fixed leads.", "固定提前量的中位数。"), "short", (Query(own("forecast_requests", 'quantile="0.5"'), "{{pool}} in {{lead}}"),)),
        Panel(Words("Made 72 hours ago, against what came", "72 小时前的预测与实际"), Words("This hour as it was forecast three days ago.", "三天前对当前小时的预测。"), "short",
              (Query(own("pool_concurrency_requests"), "{{pool}} came"), Query(own("forecast_made_72h_ago_requests"), "{{pool}} forecast, {{quantile}}")), quiet=Words("the daemon has run for less than 72 hours", "守护进程运行未满 72 小时")),
        Panel(Words("Peaks ahead", "未来峰值"), Words("Highest demand within 24 and 72 hours.", "24 与 72 小时内的最高需求。"), "short", (Query(own("forecast_peak_requests"), "{{pool}} {{lead}} {{quantile}}"),)),
        Panel(Words("GPUs needed at the peak against usable", "峰值所需 GPU 与可用 GPU"), Words("Of the whole horizon.", "整个预测期。"), "short", (Query(own("gpus_needed_peak"), "needed, {{quantile}}"), Query(own("gpus_usable"), "usable"))),
        Panel(Words("Tide calendar", "潮汐日历"), Words("GPUs expected to stay free at the 90 % level, by weekday and hour (UTC) of the coming week.", "未来一周各时段（UTC）在 90 % 水平预计空闲的 GPU。"), "short", (Query(f"sum by (weekday, hour) ({own('tide_free_gpus')})", "{{weekday}} {{hour}}"),), "matrix", 24, limits=((0, "green"),)),
        Panel(Words("Error against repeating last week", "相对上周重复的误差"), Words("Of elapsed forecasts; below 1 the forecaster is better.", "已到期预测；小于 1 表示预测器更好。"), "none", (Query(own("forecast_skill_ratio"), "{{pool}}"),), limits=((1, "orange"),)),
        Panel(Words("Hours inside the 80 % band", "落入 80 % 区间的小时"), Words("0.8 is right: less = too sure, more = too wide.", "0.8 为准：偏小说明过于自信，偏大说明区间过宽。"), "percentunit", (Query(own("forecast_scored_coverage80"), "{{pool}} {{signal}} {{forecaster}}"),), quiet=Words("no forecast's time has come yet", "还没有预测到期")),
        Panel(Words("Leases end", "租约到期"), Words("When each lent node is due back.", "各出借节点的归还时间。"), "dateTimeAsIso", (Query(f"{own('lease_until_timestamp_seconds')} * 1000", "{{node}}"),), "table", quiet=Words("no node is lent", "没有出借的节点")),
    ),
)  # fmt: skip

ACTIONS = Board(
    "tidewarden-actions",
    Words("Tidewarden / Actions and audit", "Tidewarden / 动作与审计"),
    Words("What was done, what was refused and why, how often rules were right.", "做了什么、拒绝了什么及原因、规则的准确度。"),
    (
        Panel(Words("Mode", "模式"), Words("How far actions may go.", "动作的权限范围。"), "none", (Query(own("mode_info"), "{{mode}}"),), "stat", 6),
        Panel(Words("Paused", "已暂停"), Words("1 while an operator has paused all actions.", "操作员暂停所有动作时为 1。"), "none", (Query(own("paused"), "{{instance}}"),), "stat", 6, limits=((1, "orange"),)),
        Panel(Words("Under way", "进行中"), Words("Actions begun and not ended.", "已开始未结束的动作。"), "short", (Query(own("steps_in_flight"), "{{instance}}"),), "stat", 6),
        Panel(Words("Waits for approval", "等待批准"), Words("Actions that wait for an operator.", "等待操作员的动作。"), "short", (Query(own("steps_awaiting_approval"), "{{instance}}"),), "stat", 6, limits=((1, "blue"),)),
        Panel(Words("Actions by result", "动作结果"), Words("Ended within the window.", "窗口内结束的动作。"), "short", (Query(f"sum by (verb, result) (increase({own('steps_total')}[$__rate_interval]))", "{{verb}} {{result}}"),), stacked=True),
        Panel(Words("Refused by the guard", "被守卫拒绝"), Words("By reason; nothing is refused without one.", "按原因；每次拒绝都有原因。"), "short", (Query(f"sum by (verb, reason) (increase({own('refusals_total')}[$__rate_interval]))", "{{verb}} {{reason}}"),), stacked=True, quiet=Words("nothing was refused since the start", "启动以来没有拒绝")),
        Panel(Words("Nobody can tell", "结果未知"), Words("Actions whose outcome is unknown; a person has to look.", "结果未知的动作；需要人工确认。"), "short", (Query(f"sum by (verb) ({own('steps_total', UNKNOWN)})", "{{verb}}"),), quiet=NO_FAULT, limits=((1, "red"),)),
        Panel(Words("Parts taken out", "已隔离部件"), Words("Nodes and GPUs isolated by tidewarden.", "被 tidewarden 隔离的节点与 GPU。"), "short", (Query(own("entities_isolated"), "{{instance}}"),)),
        Panel(Words("Incidents opened", "新开事件"), Words("Within the window, by severity.", "窗口内按严重程度。"), "short", (Query(f"sum by (severity) (increase({own('incidents_opened_total')}[$__rate_interval]))", "{{severity}}"),), stacked=True),
        Panel(Words("Incidents closed", "关闭的事件"), Words("Within the window, by severity.", "窗口内按严重程度。"), "short", (Query(f"sum by (severity) (increase({own('incidents_closed_total')}[$__rate_interval]))", "{{severity}}"),), stacked=True),
        Panel(Words("Rules that fired", "触发的规则"), Words("Incidents a rule took part in.", "规则参与的事件数。"), "short", (Query(f"topk(30, {own('rule_fired')})", "{{rule}}"),), "table"),
        Panel(Words("Precision of rules", "规则准确率"), Words("Share of judged claims that were right.", "经判定正确的占比。"), "percentunit", (Query(f"bottomk(30, {own('rule_precision_ratio')} >= 0)", "{{rule}}"),), "table", quiet=Words("no claim was judged yet: tidewarden incidents confirm ID", "尚无判定：tidewarden incidents confirm ID")),
    ),
)  # fmt: skip

SELF = Board(
    "tidewarden-self",
    Words("Tidewarden / Self-monitoring", "Tidewarden / 自监控"),
    Words("Whether the daemon itself is well.", "守护进程自身是否正常。"),
    (
        Panel(Words("Version", "版本"), Words("Of each daemon.", "各守护进程的版本。"), "none", (Query(own("build_info"), "{{instance}} {{version}}"),), "stat", 6),
        Panel(Words("Ready", "就绪"), Words("1 once a first round of telemetry is in.", "首轮遥测完成后为 1。"), "none", (Query(own("ready"), "{{instance}}"),), "stat", 6),
        Panel(Words("Journal", "日志"), Words("0 while the journal cannot be written: nothing is changed then.", "日志无法写入时为 0，此时不做任何更改。"), "none", (Query(own("journal_healthy"), "{{instance}}"),), "stat", 6),
        Panel(Words("Last reload took effect", "最近重载生效"), Words("0 after a reload that was refused.", "重载被拒后为 0。"), "none", (Query(own("config_last_reload_successful"), "{{instance}}"),), "stat", 6),
        Panel(Words("Time of a decision", "决策耗时"), Words("How long the last tick took.", "最近一次决策耗时。"), "s", (Query(own("tick_seconds"), "{{instance}}"),)),
        Panel(Words("Decisions", "决策"), Words("Made and missed per second.", "每秒完成与错过的决策。"), "ops", (Query(f"rate({own('ticks_total')}[$__rate_interval])", "{{instance}} made"), Query(f"rate({own('ticks_missed_total')}[$__rate_interval])", "{{instance}} missed"))),
        Panel(Words("Targets", "目标"), Words("Scraped addresses by state.", "按状态统计的采集目标。"), "short", (Query(own("targets"), "{{state}}"),), stacked=True),
        Panel(Words("Scrapes", "采集"), Words("Ended, failed, missed per second.", "每秒完成、失败与错过的采集。"), "ops", (Query(f"rate({own('scrapes_total')}[$__rate_interval])", "ended"), Query(f"rate({own('scrape_failures_total')}[$__rate_interval])", "failed"), Query(f"rate({own('scrapes_missed_total')}[$__rate_interval])", "missed"))),
        Panel(Words("Sources in trouble", "异常来源"), Words("Failed reads in a row.", "连续读取失败次数。"), "short", (Query(f"topk(10, {own('source_failures')})", "{{source}}"),)),
        Panel(Words("Messages to people", "发给人的消息"), Words("Outbox of the last 30 days by state.", "最近 30 天发件箱按状态。"), "short", (Query(own("outbox_letters"), "{{state}}"),)),
        Panel(Words("Memory", "内存"), Words("Resident memory of the daemon.", "守护进程常驻内存。"), "bytes", (Query(own("process_resident_memory_bytes"), "{{instance}}"),)),
        Panel(Words("CPU", "CPU"), Words("Cores in use.", "占用的核数。"), "short", (Query(f"rate({own('process_cpu_seconds_total')}[$__rate_interval])", "{{instance}}"),)),
        Panel(Words("Open files", "打开的文件"), Words("Against the limit.", "与上限对比。"), "short", (Query(own("process_open_fds"), "open"), Query(own("process_max_fds"), "limit"))),
        Panel(Words("What is watched", "监控对象"), Words("Entities by kind.", "按类型统计的实体。"), "short", (Query(own("entities"), "{{kind}}"),)),
        Panel(Words("Age of the forecasts", "预测的时效"), Words("Decision time less the time each forecast was made.", "决策时间与预测生成时间之差。"), "s", (Query(f"{own('decision_timestamp_seconds')} - on (job, instance) group_right () {own('forecast_timestamp_seconds')}", "{{pool}}"),), limits=((7200, "orange"),)),
        Panel(Words("Telemetry incidents", "遥测事件"), Words("Open ones by kind.", "按类型统计未关闭事件。"), "short", (Query(f"sum by (kind) ({own('incidents_open', kinds('telemetry'))})", "{{kind}}"),)),
    ),
)  # fmt: skip
