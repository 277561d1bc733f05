"""Every column of a result, its type, its unit and its meaning; the words it may hold; and the version of all that."""

from __future__ import annotations

from typing import Final, Literal, get_args

import pyarrow as pa

SCHEMA_VERSION: Final = 1

ArmName = Literal["strategy", "baseline"]
Status = Literal["ok", "unsupported", "unavailable", "out_of_memory", "timeout", "error"]
Evidence = Literal["measured", "modelled", "published"]
Saving = Literal["physical", "packed", "offloaded", "none"]
Fidelity = Literal["exact", "lossy_training_free", "uptrained", "trained", "structure_only"]
Weights = Literal["pretrained", "embedded", "random"]
Verdict = Literal["faster", "slower", "no_difference", "inconclusive", "none"]
Regime = Literal["memory_bound", "overhead_bound", "launch_bound"]
Prediction = Literal["fitted", "modelled", "no_rate"]
ScoreVerdict = Literal["better", "worse", "no_difference", "too_few", "at_chance", "off_reference", "none"]
Comparison = Literal["paired", "unpaired", "none"]
Statistic = Literal["median", "mean"]
BudgetUnit = Literal["tokens", "ratio", "bytes"]
Phase = Literal["prefill", "decode"]
Timed = Literal["prefill", "decode", "serve"]
TimedArm = Literal["strategy", "baseline", "baseline_again"]

RUN_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "arm": get_args(ArmName),
    "status": get_args(Status),
    "evidence": get_args(Evidence),
    "saving": get_args(Saving),
    "fidelity": get_args(Fidelity),
    "weights": get_args(Weights),
    "verdict": get_args(Verdict),
    "score_verdict": get_args(ScoreVerdict),
    "regime": get_args(Regime),
    "prediction": get_args(Prediction),
    "comparison": get_args(Comparison),
    "statistic": get_args(Statistic),
    "budget_unit": get_args(BudgetUnit),
}
STEP_WORDS: Final[dict[str, tuple[str, ...]]] = {"arm": get_args(TimedArm), "phase": get_args(Timed)}

_Column = tuple[str, pa.DataType, str, str]
_WORD, _COUNT, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()

_IDENTITY: list[_Column] = [
    ("schema_version", _COUNT, "", "version of this list of columns"),
    ("run_id", _WORD, "", "name of the run's folder; repeats of a run end in -2, -3, ..."),
    ("arm", _WORD, "", "which side of the comparison the row describes"),
    ("sweep", _WORD, "", "folder the run lies in: the experiment's name or a hash of the overrides"),
    ("created_at", _WORD, "", "when the run began, UTC, ISO 8601"),
    ("strategy", _WORD, "", "name of the arm's strategy; 'baseline' for the baseline's arm"),
    ("model", _WORD, "", "name of the model"),
    ("engine", _WORD, "", "what made the tokens"),
    ("workload", _WORD, "", "name of the workload"),
    ("seed", _COUNT, "", "of everything drawn at random"),
    ("config_hash", _WORD, "", "hash of the resolved configuration"),
    ("config_json", _WORD, "", "the resolved configuration"),
    ("overrides", _WORD, "", "what was typed, separated by spaces"),
    ("source_hash", _WORD, "", "hash of kvbench's source tree"),
    ("device", _WORD, "", "kind of device"),
    ("status", _WORD, "", "how the run ended"),
    ("evidence", _WORD, "", "where the numbers come from; rows of different evidence are never ranked together"),
    ("comparison", _WORD, "", "paired: timed block by block beside the baseline; unpaired: apart from it"),
    ("batch_size", _COUNT, "rows", "sequences at once"),
    ("prompt_tokens", _COUNT, "tokens", "prompt of the longest row"),
]

_ORIGIN: list[_Column] = [
    ("model_revision", _WORD, "", "commit of the checkpoint, or a hash of its weights"),
    ("weights", _WORD, "", "origin of the weights; with random ones quality is empty"),
    ("network", _WORD, "", "other model that a model-level strategy ran on, its weights and revision; empty for none"),
    ("plugin_hash", _WORD, "", "hash of the packages beside kvbench that its parts come from; empty without them"),
    ("git_commit", _WORD, "", "commit of kvbench's checkout; empty when installed"),
    ("git_dirty", _FLAG, "", "whether the checkout had changes"),
    ("device_name", _WORD, "", "name of the device; where model.device_map takes several, of the first"),
    ("layer_devices", _WORD, "", "which layers model.device_map put on which device; empty without it"),
    ("cpu_model", _WORD, "", "name of the processor"),
    ("num_cpus", _COUNT, "", "processor cores the run may use"),
    ("num_threads", _COUNT, "", "threads that computed"),
    ("ram_bytes", _COUNT, "bytes", "memory of the machine"),
    ("driver", _WORD, "", "version of the device's driver"),
    ("load_1min", _REAL, "", "load average when the run began"),
    ("python", _WORD, "", "version"),
    ("torch", _WORD, "", "version"),
    ("transformers", _WORD, "", "version"),
    ("triton", _WORD, "", "version"),
    ("vllm", _WORD, "", "version, where it made the tokens: then those of python, torch, transformers are its own"),
    ("kvbench", _WORD, "", "version"),
    ("dtype", _WORD, "", "of weights and cache"),
    ("attention", _WORD, "", "attention implementation that ran"),
]

_WHAT: list[_Column] = [
    ("new_tokens", _COUNT, "tokens", "tokens after the prompt; empty where nobody knows"),
    ("reason", _WORD, "", "why the status is not ok, or why the verdict is what it is"),
    ("saving", _WORD, "", "kind of saving the method makes"),
    ("fidelity", _WORD, "", "how the outputs relate to the full cache's"),
    ("verdict", _WORD, "", "what may be claimed of the speed"),
    ("regime", _WORD, "", "what bounds a step of the baseline; overhead_bound: its bytes fit in the processor's cache"),
    ("statistic", _WORD, "", "of a block's steps that `ratio` is made of; the mean for strategies with periodic work"),
    (
        "kernel",
        _WORD,
        "",
        "what attends to entries that are packed, in pages, or not as many in each head: native, triton, flex or "
        "reference; empty for plain torch",
    ),
    ("query_aware", _FLAG, "", "whether the question is in the cache when it is compressed"),
    ("data_dependent", _FLAG, "", "whether the bytes stored depend on the data"),
    ("decode_rule", _FLAG, "", "whether the budget also holds while decoding"),
    ("budget_unit", _WORD, "", "what budget_amount counts; a ratio is the fraction kept of a row's prompt"),
    ("budget_amount", _REAL, "budget_unit", "budget asked for"),
    ("entries_asked", _REAL, "entries", "budget per layer and KV head, mean over them"),
    ("entries_held_mean", _REAL, "entries", "held per layer and KV head at the end of decoding, mean over them"),
    ("entries_held_min", _COUNT, "entries", "the same, least"),
    ("entries_held_max", _COUNT, "entries", "the same, most"),
]

_TIME: list[_Column] = [
    ("ttft_ms", _REAL, "ms", "time to first token: prefill, with scoring and compression; median"),
    ("ttft_ratio", _REAL, "ratio", "ttft over the baseline's, median over rounds; below 1 is faster"),
    ("ttft_ratio_low", _REAL, "ratio", "lower end of its 95% interval"),
    ("ttft_ratio_high", _REAL, "ratio", "upper end of its 95% interval"),
    ("tpot_ms", _REAL, "ms", "time per output token after the first, mean of all kept steps"),
    ("decode_p50_ms", _REAL, "ms", "time of a decode step, clean blocks without their first step: median"),
    ("decode_p90_ms", _REAL, "ms", "90th percentile"),
    ("decode_p95_ms", _REAL, "ms", "95th percentile"),
    ("decode_p99_ms", _REAL, "ms", "99th percentile"),
    ("decode_max_ms", _REAL, "ms", "largest"),
    ("decode_mean_ms", _REAL, "ms", "amortised mean, over full periods for strategies with periodic work"),
    ("tokens_per_s", _REAL, "tokens/s", "generated tokens of all rows per second of decoding"),
    ("energy_j_per_token", _REAL, "J", "that the whole device used while decoding; empty where it counts none"),
    ("ratio", _REAL, "ratio", "time of a decode step over the baseline's, median over rounds; below 1 is faster"),
    ("ratio_low", _REAL, "ratio", "lower end of its 95% interval"),
    ("ratio_high", _REAL, "ratio", "upper end of its 95% interval"),
    ("aa_ratio", _REAL, "ratio", "the baseline over itself: the noise"),
    ("aa_low", _REAL, "ratio", "lower end of its 95% interval"),
    ("aa_high", _REAL, "ratio", "upper end of its 95% interval"),
    ("ceiling", _REAL, "speed-up", "most that the bytes read allow: bytes a step of the baseline reads over the arm's"),
    ("floor_ms", _REAL, "ms", "least time of a step: bytes_read_per_step at bandwidth_bytes_per_s"),
    ("efficiency", _REAL, "share", "floor_ms over decode_p50_ms"),
    ("bytes_read_per_step", _COUNT, "bytes", "weights and cache that a decode step reads"),
    ("bandwidth_bytes_per_s", _REAL, "bytes/s", "of reading, measured in this run"),
    ("predicted_ms", _REAL, "ms", "decode step by the cost model, as much slower as the baseline's step was: modelled"),
    ("prediction", _WORD, "", "fitted: the baseline's own time; no_rate: kvbench hardware measures what is missing"),
    ("measured_over_predicted", _REAL, "share", "decode_p50_ms over predicted_ms: above 1 is slower than modelled"),
    ("binding_resource", _WORD, "", "what the modelled step spends most on; without a baseline nothing is modelled"),
    ("rounds", _COUNT, "", "rounds with a clean block of both arms"),
    ("dirty_share", _REAL, "share", "blocks disturbed by other processes"),
    ("setup_s", _REAL, "s", "warm-up, compilation included"),
]

_SERVING: list[_Column] = [
    ("requests", _COUNT, "requests", "served; the columns down to preemptions are empty where there are none"),
    ("serve_s", _REAL, "s", "from the first arrival to the last token; median"),
    ("passes", _COUNT, "", "of the model over tokens of several requests"),
    ("ttft_p99_ms", _REAL, "ms", "99th percentile of ttft over requests, which is from arrival to first token"),
    ("e2e_p50_ms", _REAL, "ms", "from arrival to last token: median over requests"),
    ("e2e_p99_ms", _REAL, "ms", "99th percentile"),
    ("goodput_per_s", _REAL, "requests/s", "requests in time: workload.ttft_target_ms and workload.tpot_target_ms"),
    ("fairness", _REAL, "share", "Jain's index of requests' times per generated token: 1 where all are alike"),
    ("max_wait_ms", _REAL, "ms", "longest time from arrival to first pass"),
    ("sharing", _REAL, "ratio", "tokens of all prompts over those of the tree they make; what is generated left out"),
    ("prefill_tokens_computed", _COUNT, "tokens", "of prompts that passes read, again where pages were taken away"),
    ("prefill_tokens_reused", _COUNT, "tokens", "of prompts whose entries were there already"),
    ("preemptions", _COUNT, "", "how often a request under way lost its pages"),
    ("same_share", _REAL, "share", "requests, or answers, that got the very tokens that the baseline gave them"),
]

_MEMORY: list[_Column] = [
    ("weights_bytes", _COUNT, "bytes", "parameters and buffers of the model"),
    ("kv_allocated_bytes", _COUNT, "bytes", "all storages on the device: payload, scales, indices, windows, buffers"),
    ("kv_used_bytes", _COUNT, "bytes", "the part that is occupied at the end"),
    ("kv_predicted_bytes", _COUNT, "bytes", "kv_allocated_bytes by the strategy's closed form"),
    (
        "page_utilisation",
        _REAL,
        "share",
        "slots of all pages taken that hold entries; empty where slots lie in no pages",
    ),
    (
        "bits_per_element",
        _REAL,
        "bits",
        "kv_used_bytes per number of the keys and values held, metadata included; empty where none are held",
    ),
    ("stored_ratio", _REAL, "ratio", "of the prompt's bytes in the full cache to those it is encoded to, to be stored"),
    ("runtime_ratio", _REAL, "ratio", "the same to those that decode steps read: keys and values made of the encoding"),
    ("exact_share", _REAL, "share", "numbers held that are as the model made them, not packed, at the end"),
    ("outlier_share", _REAL, "share", "numbers held in channels that have more bits than others, at the end"),
    ("sink_share", _REAL, "share", "numbers held of first tokens that have more bits than others, at the end"),
    ("host_bytes", _COUNT, "bytes", "cache that lies in the host's memory, apart from what the model computes with"),
    (
        "host_share",
        _REAL,
        "share",
        "of each layer in the host's memory, as strategy.placement.host=fit chose it; empty where given",
    ),
    ("pinned_bytes", _COUNT, "bytes", "the part of host_bytes that is page-locked; none where the host computes"),
    ("disk_bytes", _COUNT, "bytes", "cache that lies on disk"),
    ("disk_cold", _FLAG, "", "whether a step reads the disk again, or what memory keeps of it; empty without a disk"),
    ("up_bytes_per_step", _REAL, "bytes", "from the host's part of the cache to the device's, per decode step"),
    ("down_bytes_per_step", _REAL, "bytes", "the other way"),
    ("disk_read_bytes_per_step", _REAL, "bytes", "of the cache, per decode step"),
    ("disk_written_bytes_per_step", _REAL, "bytes", "of the cache, per decode step"),
    ("modelled_link_ms", _REAL, "ms", "a decode step's traffic over strategy.placement's link: modelled, in no time"),
    ("recomputed_tokens_per_step", _REAL, "tokens", "whose keys and values are made again, over all layers"),
    ("hit_share", _REAL, "share", "pages a decode step read that lay on the device already"),
    ("wait_share", _REAL, "share", "layers of a timed step whose entries had not all come when attention asked"),
    ("stall_ms_per_step", _REAL, "ms", "that the host waited for entries, over all layers; a GPU waits by itself"),
    ("overlap_share", _REAL, "share", "of the time that fetching takes, what no layer waited for; empty on a GPU"),
    ("idle_bytes", _COUNT, "bytes", "memory with the model loaded and nothing of a cache; the next five are above it"),
    ("steady_bytes", _COUNT, "bytes", "after prefill and compression, staging freed"),
    ("prefill_peak_bytes", _COUNT, "bytes", "most during prefill"),
    ("decode_peak_bytes", _COUNT, "bytes", "most during decoding"),
    ("peak_bytes", _COUNT, "bytes", "most of both, measured in a process of its own"),
    ("average_bytes", _COUNT, "bytes", "mean over the decode steps"),
    ("resident_bytes", _COUNT, "bytes", "resident memory of the process at the end, on a CPU"),
]

_QUALITY: list[_Column] = [
    ("nll_nats", _REAL, "nats/token", "loss on the scored tokens, read through the cache"),
    ("guess_nats", _REAL, "nats/token", "loss of whoever guesses: the log of how many tokens there are"),
    ("nll_delta_nats", _REAL, "nats/token", "nll_nats less that of the full cache"),
    ("nll_delta_low", _REAL, "nats/token", "lower end of its 95% interval over windows; workload=perplexity alone"),
    ("nll_delta_high", _REAL, "nats/token", "upper end of its 95% interval"),
    ("perplexity", _REAL, "", "exp of nll_nats"),
    ("true_rank", _REAL, "", "mean rank of the true token, 1 for the most likely; workload=perplexity alone"),
    ("bits_per_byte", _REAL, "bits/byte", "nll_nats per byte of text, comparable across tokenizers"),
    ("kl_nats", _REAL, "nats/token", "divergence of the next-token distribution from the full cache's"),
    ("top1_agreement", _REAL, "share", "tokens for which the full cache would choose the same"),
    ("score", _REAL, "", "of what the workload asks, from 0 to 1: mean over tasks of their samples' means"),
    ("score_low", _REAL, "", "lower end of its 95% interval"),
    ("score_high", _REAL, "", "upper end of its 95% interval"),
    ("score_delta", _REAL, "", "score less the full cache's, sample by sample; empty where that one says nothing"),
    ("score_delta_low", _REAL, "", "lower end of its 95% interval"),
    ("score_delta_high", _REAL, "", "upper end of its 95% interval"),
    ("score_reference", _REAL, "", "score that the full cache is known to reach; the strategy's row has it"),
    ("score_verdict", _WORD, "", "what may be claimed of the score"),
    ("score_reason", _WORD, "", "why"),
    ("asked_samples", _COUNT, "", "conversations of all tasks; this and the next five are those of samples.parquet"),
    ("answer_length", _REAL, "tokens", "generated for an answer, in the mean"),
    ("ended_share", _REAL, "share", "answers that the model ended, rather than the most tokens there may be"),
    ("length_ratio", _REAL, "ratio", "tokens of all answers over those of the full cache's; above 1 is longer"),
    ("length_ratio_low", _REAL, "ratio", "lower end of its 95% interval"),
    ("length_ratio_high", _REAL, "ratio", "upper end of its 95% interval"),
    ("recall_key_value", _REAL, "share", "values recalled exactly"),
    ("recall_passkey", _REAL, "share", "passkeys recalled exactly"),
    (
        "attention_lost",
        _REAL,
        "share",
        "of the full cache's attention on short texts, to what left for good; mean over decode steps, layers, heads",
    ),
    ("key_error", _REAL, "ratio", "root mean square of what packing does to a prompt's keys, over that of the keys"),
    ("value_error", _REAL, "ratio", "the same of its values"),
    ("max_logit_difference", _REAL, "logits", "largest difference from the full cache's logits"),
    (
        "equal_tokens",
        _COUNT,
        "tokens",
        "greedy ones that a black box shares with our full cache before the first that differs in any row",
    ),
    ("divergence_margin", _REAL, "logits", "between our first two choices where the first differs; empty for none"),
    ("quality_tokens", _COUNT, "tokens", "tokens scored"),
    ("recall_samples", _COUNT, "", "samples of each recall task"),
]

_STEP: list[_Column] = [
    ("run_id", _WORD, "", "of the run"),
    ("arm", _WORD, "", "what was timed; baseline_again is the baseline under a second name, to see the noise"),
    ("round", _COUNT, "", "every arm is timed once in each"),
    ("block", _COUNT, "", "number of the block within the run and the phase, in order of time"),
    ("index_in_block", _COUNT, "", "0 is recorded, but counts only where it is alone"),
    ("phase", _WORD, "", "what the step did"),
    ("position", _COUNT, "tokens", "tokens of a row already seen by the model when the step began"),
    ("tokens", _COUNT, "tokens", "tokens the step read, all rows together"),
    ("wall_ns", _COUNT, "ns", "host's clock; only the launching, where there is an event_ms"),
    ("is_clean", _FLAG, "", "whether the block was left alone by other processes"),
]
_REQUEST: list[_Column] = [
    *_STEP[:5],
    ("number", _COUNT, "", "of the request"),
    ("group", _COUNT, "", "leaf of the tree of prefixes that it belongs to, or conversation"),
    ("arrival_s", _REAL, "s", "by a clock that goes on at once to the next arrival where nothing is under way"),
    ("admitted_s", _REAL, "s", "when its first pass was chosen"),
    ("first_token_s", _REAL, "s", "when its first token was there"),
    ("last_token_s", _REAL, "s", "when its last token was there"),
    ("prompt_tokens", _COUNT, "tokens", "of its whole prompt, what came before in its conversation included"),
    ("new_tokens", _COUNT, "tokens", "generated"),
    ("computed_tokens", _COUNT, "tokens", "of its prompt that passes read, again where its pages were taken away"),
    ("reused_tokens", _COUNT, "tokens", "of its prompt whose entries were there already"),
    ("preemptions", _COUNT, "", "how often it lost its pages"),
]
_SAMPLE: list[_Column] = [
    ("run_id", _WORD, "", "of the run"),
    ("arm", _WORD, "", "who answered"),
    ("task", _WORD, "", "what it is a sample of; scores are averaged by task first"),
    ("number", _COUNT, "", "of the sample; both arms are asked the same"),
    ("turn", _COUNT, "", "of the conversation, from 0"),
    ("context_tokens", _COUNT, "tokens", "read and compressed"),
    ("question_tokens", _COUNT, "tokens", "read after that, one at a time"),
    ("answer_tokens", _COUNT, "tokens", "generated, or scored where the text is given"),
]
_SAMPLE_MEASURES: list[_Column] = [
    ("score", _REAL, "", "of the answer, from 0 to 1; this and the next six are empty where the text is given"),
    ("chance", _REAL, "", "score of whoever guesses"),
    ("is_chat", _FLAG, "", "whether the tokenizer's chat template wrote the prompt"),
    ("is_ended", _FLAG, "", "whether the model ended its answer, rather than the most tokens there may be"),
    ("answer", _WORD, "", "what was generated"),
    ("references_json", _WORD, "", "answers that count, as a list"),
    ("depth", _REAL, "share", "where in the context lies what was asked for, from 0 (its start) to 1"),
    (
        "nll_nats",
        _REAL,
        "nats/token",
        "loss on the given text; this and the next three are empty where it is generated",
    ),
    ("true_rank", _REAL, "", "mean rank of the true token, 1 for the most likely"),
    (
        "kl_nats",
        _REAL,
        "nats/token",
        "divergence from the full cache's distribution; empty where it was not asked beside",
    ),
    ("top1_agreement", _REAL, "share", "tokens for which the full cache would choose the same; empty likewise"),
]
_STEP_MEASURES: list[_Column] = [("event_ms", _REAL, "ms", "device's clock; empty where the host's clock tells all")]


def _schema(required: list[_Column], nullable: list[_Column]) -> pa.Schema:
    columns = [(column, False) for column in required] + [(column, True) for column in nullable]
    return pa.schema(
        [
            pa.field(name, kind, nullable=can_be_empty, metadata={"doc": doc, "unit": unit})
            for (name, kind, unit, doc), can_be_empty in columns
        ],
        metadata={"kvbench_schema_version": str(SCHEMA_VERSION)},
    )


RUN: Final = _schema(_IDENTITY, [*_ORIGIN, *_WHAT, *_TIME, *_SERVING, *_MEMORY, *_QUALITY])
STEPS: Final = _schema(_STEP, _STEP_MEASURES)
REQUESTS: Final = _schema(_REQUEST, [])
SAMPLES: Final = _schema(_SAMPLE, _SAMPLE_MEASURES)
