"""An estimate of the memory that a training needs, made from the model's configuration before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.execution.ram import available_bytes
from mloc_prefect.execution.shares import leased_share
from mloc_prefect.executors.engine import EngineOptions
from mloc_prefect.executors.training_arguments import lora_arguments, rollout_sizes
from mloc_prefect.executors.training_model import dtype_name, wants_lora
from mloc_prefect.executors.training_states import is_mixed, optimiser_of, shards_of
from mloc_prefect.plan.resources import parse_memory
from mloc_prefect.tasks.training_table import cells

if TYPE_CHECKING:
    from mloc_prefect.executors.training_arguments import Options
    from mloc_prefect.executors.training_recipe import Job

_QUANTISED = {4: 0.5625, 8: 1.0}  # bytes by bits: 4 bits have a scale for each 64 weights
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "auto": 2}
_SCORES_AT_ONCE = 8 << 20  # floats of logits that the chunked loss of sft keeps at a time
_PER_LAYER = 34  # bytes for each token and hidden unit in 16 bits, fused attention (Korthikanti et al. 2022, eq. 2)
_MARGIN = 1.1  # allocator and libraries


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes on one device.

    Attributes:
        terms: Name and bytes of each part, largest first.
        room: Bytes that the device has, or None.
    """

    terms: tuple[tuple[str, int], ...]
    room: int | None

    @property
    def total(self) -> int:
        """All of it, with a margin."""
        return int(sum(size for _, size in self.terms) * _MARGIN)

    @property
    def fits(self) -> bool:
        """Whether it seems to fit; an unknown size fits everything."""
        return self.room is None or self.total <= self.room


def check_fit(job: Job, config: Any) -> Estimate | None:
    """Warn when a training will hardly fit into memory; with `--strict` refuse it.

    Args:
        job: The training.
        config: Configuration of its model.

    Returns:
        The estimate; None when the configuration does not say enough.

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


def estimate_of(job: Job, config: Any, room: int | None) -> Estimate | None:
    """Return the estimate for one device; parameters and their states are divided as FSDP or ZeRO do it."""
    shape = _shape(config)
    if shape is None:
        return None
    options, lora = job.options, wants_lora(job.options, job.spec)
    loaded = _loaded_bytes(job, shape)
    trained = _lora_size(job, shape) if lora else shape.parameters
    shards = shards_of(options, job.places, cuda=job.cuda, world=job.group.world)
    optimiser, state = optimiser_of(options)
    terms = {
        "parameters": (loaded + (trained * 4 if lora else 0)) / shards.parameters,
        "gradients": trained * 4 / shards.gradients,
        f"optimiser ({optimiser})": trained * state / shards.optimiser,
        **_batch_terms(job, shape),
    }
    if _has_reference(options) and not lora:
        terms["reference model"] = loaded
    if options.kind == "ppo":
        terms["value model with its optimiser"] = shape.parameters * (8 + state)
    found = ((name, int(size)) for name, size in terms.items())
    return Estimate(tuple(sorted(found, key=lambda term: -term[1])), room)


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes of a decoder; `embeddings` are the parameters of its first and last layer, which no quantisation takes."""

    layers: int
    hidden: int
    vocabulary: int
    parameters: int
    embeddings: int


def _loaded_bytes(job: Job, shape: _Shape) -> float:
    """Return the bytes of the weights as they are loaded."""
    bits = EngineOptions.of(job.spec).bits
    if bits:
        return (shape.parameters - shape.embeddings) * _QUANTISED[bits] + shape.embeddings * _BYTES["auto"]
    return shape.parameters * _BYTES.get(dtype_name(job.options, job.spec, cuda=job.cuda), 4)


def _batch_terms(job: Job, shape: _Shape) -> dict[str, float]:
    """Return what grows with the batch."""
    options, (rows, tokens) = job.options, _batch(job)
    unit = rows * tokens * shape.hidden * (1 if is_mixed(options, cuda=job.cuda) else 2)
    again = options.training.flag("gradient_checkpointing", default=False)
    kept = 2 * shape.layers + _PER_LAYER if again else _PER_LAYER * shape.layers
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


def _lora_size(job: Job, shape: _Shape) -> int:
    arguments = lora_arguments(job.spec.child("lora"))
    modules = arguments["target_modules"]
    count = 7 if isinstance(modules, str) else len(modules)
    return int(shape.layers * count * 2 * shape.hidden * arguments["r"])


def _has_reference(options: Options) -> bool:
    """Return whether a second model holds the trained one near; TRL's GRPO loads none when its `beta` is 0."""
    if options.kind != "grpo":
        return options.kind in {"dpo", "ppo"}
    names = [name for name, cell in cells("grpo").items() if (cell.way, cell.name) == ("config", "beta")]
    given = [options.training.number(name, 0.0) for name in names if options.training.get(name) is not None]
    return bool(given) and given[-1] != 0  # of several names the last one counts, as in the arguments of TRL


def _batch(job: Job) -> tuple[int, int]:
    """Return rows and tokens of the largest batch that goes through the model with gradients."""
    options, tokens = job.options, _row_tokens(job)
    if options.kind == "ppo":
        batch, parts, _ = rollout_sizes(options)
        return max(1, batch // parts), tokens + options.generation.integer("max_new_tokens", 53)
    name = "per_device_train_batch_size" if "per_device_train_batch_size" in options.given else "batch_size"
    rows = options.training.integer(name, 1, minimum=1) * (2 if options.kind == "dpo" else 1)
    if options.kind == "grpo":
        return rows, tokens + options.generation.integer("max_new_tokens", 256)
    return rows, tokens


def _row_tokens(job: Job) -> int:
    """Return the tokens of the longest row, or of the longest prompt where answers are generated."""
    lengths = job.lengths
    if lengths is None:
        return 1024
    if job.options.training.flag("packing", default=False):  # rows are filled up to the limit
        return min(lengths.longest * lengths.total, lengths.limit)
    return min(lengths.longest, lengths.limit)


def _room(job: Job) -> int | None:
    """Return the bytes of the device: the leased part of the GPU, else what spec and machine give each process."""
    if job.cuda:
        import torch

        whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return int(whole * leased_share())
    hardware = job.spec.child("resources").child("hardware")
    known = [size for size in (parse_memory(hardware.get("memory")), available_bytes()) if size]
    return min(known) // job.group.world if known else None


def _text(job: Job, estimate: Estimate) -> str:
    terms = ", ".join(f"{name} {_gib(size)}" for name, size in estimate.terms[:3])
    return (
        f"the training needs about {_gib(estimate.total)}, and there are {_gib(estimate.room or 0)}: {terms}; "
        f"{_advice(job, estimate)}"
    )


def _advice(job: Job, estimate: Estimate) -> str:
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
