"""Estimates the memory that a training needs, from the model's configuration, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.leased_devices import leased_share
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.model_options import ModelOptions
from mloc_prefect.executors.training.estimate.optimizer_states import is_mixed, optimizer_of, shards_of
from mloc_prefect.executors.training.trainer_arguments import lora_arguments, rollout_sizes
from mloc_prefect.executors.training.training_model import dtype_name, wants_lora
from mloc_prefect.plan.resources import parse_memory
from mloc_prefect.process.process_memory import available_bytes
from mloc_prefect.tasks.training.training_table import cells

if TYPE_CHECKING:
    from mloc_prefect.executors.training.recipe import TrainingJob
    from mloc_prefect.executors.training.trainer_arguments import TrainerOptions

_QUANTIZED = {4: 0.5625, 8: 1.0}  # bytes by bits: with 4 bits there is a scale for each 64 weights
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "auto": 2}
_SCORES_AT_ONCE = 8 << 20  # floats of logits that the chunked loss of sft holds at a time
_PER_LAYER = 34  # bytes per token and hidden unit in 16 bits, fused attention (Korthikanti et al. 2022, eq. 2)
_MARGIN = 1.1  # for the allocator and libraries


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated bytes on one device.

    Attributes:
        terms: Name and bytes of each part, largest first.
        room: Bytes that the device has, or None if unknown.
    """

    terms: tuple[tuple[str, int], ...]
    room: int | None

    @property
    def total(self) -> int:
        """Sum of all terms, with a margin."""
        return int(sum(size for _, size in self.terms) * _MARGIN)

    @property
    def fits(self) -> bool:
        """Whether the training probably fits; also True when the size of the device is unknown."""
        return self.room is None or self.total <= self.room


def check_fit(job: TrainingJob, config: Any) -> Estimate | None:
    """Warn when a training will probably not fit into memory; refuse it with `--strict`.

    Args:
        job: The training.
        config: Configuration of its model.

    Returns:
        The estimate; None when the configuration does not contain enough.

    Raises:
        UserError: It will not fit, and warnings count as errors (`--strict`, or `training.fit_check: error`).
    """
    wanted = str(job.options.training.get("fit_check") or "warn").lower()
    if wanted == "ignore":
        return None
    estimate = estimate_of(job, config, _room(job))
    if estimate is None or estimate.fits:
        return estimate
    text = _text(job, estimate)
    if wanted == "error" or job.request.settings.get("strict"):
        raise UserError(text)
    job.context.log(text, "warning")
    return estimate


def estimate_of(job: TrainingJob, config: Any, room: int | None) -> Estimate | None:
    """Return the estimate for one device; parameters and states are sharded as FSDP or ZeRO do it."""
    shape = _shape(config)
    if shape is None:
        return None
    options, lora = job.options, wants_lora(job.options, job.spec)
    loaded = _loaded_bytes(job, shape)
    trained = _lora_size(job, shape) if lora else shape.parameters
    shards = shards_of(options, job.sources, cuda=job.cuda, world=job.group.world)
    optimizer, state = optimizer_of(options)
    terms = {
        "parameters": (loaded + (trained * 4 if lora else 0)) / shards.parameters,
        "gradients": trained * 4 / shards.gradients,
        f"optimizer ({optimizer})": trained * state / shards.optimizer,
        **_batch_terms(job, shape),
    }
    if _has_reference(options) and not lora:
        terms["reference model"] = loaded
    if options.kind == "ppo":
        terms["value model with its optimizer"] = shape.parameters * (8 + state)
    found = ((name, int(size)) for name, size in terms.items())
    return Estimate(tuple(sorted(found, key=lambda term: -term[1])), room)


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes of a decoder; `embeddings` are the parameters of its first and last layer, which are not quantized."""

    layers: int
    hidden: int
    vocabulary: int
    parameters: int
    embeddings: int


def _loaded_bytes(job: TrainingJob, shape: _Shape) -> float:
    """Return the bytes of the weights as they are loaded."""
    bits = ModelOptions.of(job.spec).bits
    if bits:
        return (shape.parameters - shape.embeddings) * _QUANTIZED[bits] + shape.embeddings * _BYTES["auto"]
    return shape.parameters * _BYTES.get(dtype_name(job.options, job.spec, cuda=job.cuda), 4)


def _batch_terms(job: TrainingJob, shape: _Shape) -> dict[str, float]:
    """Return the terms that grow with the batch."""
    options, (rows, tokens) = job.options, _batch(job)
    unit = rows * tokens * shape.hidden * (1 if is_mixed(options, cuda=job.cuda) else 2)
    recomputes = options.training.flag("gradient_checkpointing", default=False)
    kept = 2 * shape.layers + _PER_LAYER if recomputes else _PER_LAYER * shape.layers
    scores = rows * tokens * shape.vocabulary * 4 * 2
    if options.kind in {"sft", "lora_sft"}:
        scores = min(scores, 4 * _SCORES_AT_ONCE)
    return {"activations": kept * unit, "logits": scores}


def _shape(config: Any) -> _Shape | None:
    text = config.get_text_config()
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    layers, hidden, heads, vocabulary = (getattr(text, name, None) for name in names)
    if not all(isinstance(value, int) and value > 0 for value in (layers, hidden, heads, vocabulary)):
        return None
    assert layers and hidden and heads and vocabulary
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    keys = getattr(text, "num_key_value_heads", None) or heads
    attention = hidden * hidden * 2 + 2 * hidden * hidden * keys // heads
    gated = 3 if getattr(text, "hidden_act", "") in {"silu", "swiglu", "gelu_pytorch_tanh"} else 2
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None) or 1
    embeddings = vocabulary * hidden * (1 if getattr(text, "tie_word_embeddings", False) else 2)
    parameters = layers * (attention + gated * hidden * inner * experts) + embeddings
    return _Shape(layers, hidden, vocabulary, parameters, embeddings)


def _lora_size(job: TrainingJob, shape: _Shape) -> int:
    arguments = lora_arguments(job.spec.child("lora"))
    modules = arguments["target_modules"]
    count = 7 if isinstance(modules, str) else len(modules)
    return int(shape.layers * count * 2 * shape.hidden * arguments["r"])


def _has_reference(options: TrainerOptions) -> bool:
    """Return whether a reference model is loaded; TRL's GRPO loads none when its `beta` is 0."""
    if options.kind != "grpo":
        return options.kind in {"dpo", "ppo"}
    names = [name for name, cell in cells("grpo").items() if (cell.way, cell.name) == ("config", "beta")]
    given = [options.training.number(name, 0.0) for name in names if options.training.get(name) is not None]
    return bool(given) and given[-1] != 0  # of several names the last one counts, as in TRL's arguments


def _batch(job: TrainingJob) -> tuple[int, int]:
    """Return rows and tokens of the largest batch of one forward and backward pass."""
    options, tokens = job.options, _row_tokens(job)
    if options.kind == "ppo":
        batch, parts, _ = rollout_sizes(options)
        return max(1, batch // parts), tokens + options.generation.integer("max_new_tokens", 53)
    name = "per_device_train_batch_size" if "per_device_train_batch_size" in options.given else "batch_size"
    rows = options.training.integer(name, 1, minimum=1) * (2 if options.kind == "dpo" else 1)
    if options.kind == "grpo":
        return rows, tokens + options.generation.integer("max_new_tokens", 256)
    return rows, tokens


def _row_tokens(job: TrainingJob) -> int:
    """Return the tokens of the longest row, or of the longest prompt if answers are generated."""
    lengths = job.lengths
    if lengths is None:
        return 1024
    if job.options.training.flag("packing", default=False):  # rows are combined up to the limit
        return min(lengths.longest * lengths.total, lengths.limit)
    return min(lengths.longest, lengths.limit)


def _room(job: TrainingJob) -> int | None:
    """Return the bytes available to each process: the leased share of the GPU, else what spec and machine allow."""
    if job.cuda:
        import torch

        whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return int(whole * leased_share())
    hardware = job.spec.child("resources").child("hardware")
    known = [size for size in (parse_memory(hardware.get("memory")), available_bytes()) if size]
    return min(known) // job.group.world if known else None


def _text(job: TrainingJob, estimate: Estimate) -> str:
    terms = ", ".join(f"{name} {_gib(size)}" for name, size in estimate.terms[:3])
    return (
        f"the training needs about {_gib(estimate.total)}, and there are {_gib(estimate.room or 0)}: {terms}; "
        f"{_advice(job, estimate)}"
    )


def _advice(job: TrainingJob, estimate: Estimate) -> str:
    training, largest = job.options.training, estimate.terms[0][0]
    ideas: list[str] = []
    if largest in {"activations", "logits"}:
        ideas.append("a smaller batch_size with more gradient_accumulation_steps, or a smaller max_seq_length")
        if not training.flag("gradient_checkpointing", default=False):
            ideas.append("gradient_checkpointing: true")
    if not wants_lora(job.options, job.spec):
        ideas.append("LoRA (lora_sft, or a lora block)")
    if not training.flag("bf16", default=False) and job.cuda:
        ideas.append("bf16: true")
    return "try " + ", or ".join(ideas) if ideas else "use a smaller model or a larger device"


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
