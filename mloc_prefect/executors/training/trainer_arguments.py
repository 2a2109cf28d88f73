"""Arguments of TRL's config class from `training` and `generation` of a spec, by `tasks/training/training_table.py`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.tasks.training.mini_batches import (
    SIZES,
    UnevenBatchesError,
    batches_of,
    replaced_mini_batch,
    replaced_text,
)
from mloc_prefect.tasks.training.training_table import (
    DEFAULTS,
    SHARED_DEFAULTS,
    SWITCH_WORDS,
    cells,
    config_fields,
    is_neutral,
    passed_on,
)
from mloc_prefect.trust.spec_inputs import TRAINING_FILES
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.executors.sources.source_lookup import SourceLookup
    from mloc_prefect.tasks.training.training_table import Kind

Arguments = dict[str, Any]

_AUTO_STAGE = 2  # of ZeRO, as MLOC has it
_ON_GPU = ("activation_offloading", "tf32")
_FEWEST_CHECKPOINTS = 2  # the last one may be incomplete when the process ends


@dataclass(frozen=True, slots=True)
class ArgumentContext:
    """What the arguments depend on in addition to the spec.

    Attributes:
        output_dir: Folder for checkpoints.
        cuda: Whether there is a GPU.
        world: Number of processes that train together.
        window: Largest number of tokens that the model reads, or None.
        token_of: Returns the id of a text that is a single token, None for others.
        end: Id of the token that ends an answer.
    """

    output_dir: str
    cuda: bool = False
    world: int = 1
    window: int | None = None
    token_of: Callable[[str], int | None] = lambda _text: None
    end: int | None = None


@dataclass(slots=True)
class TrainerOptions:
    """The options of one training, with defaults.

    Attributes:
        kind: The task type.
        training: `spec.training` over the defaults of the task type.
        generation: `spec.generation`.
        given: Names that the spec itself sets under `training`.
        notes: Deviations from the spec, as text.
    """

    kind: Kind
    training: SpecReader
    generation: SpecReader
    given: frozenset[str]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, kind: Kind, spec: SpecReader) -> TrainerOptions:
        """Read a resolved spec."""
        written = {name: value for name, value in spec.child("training").data.items() if value is not None}
        values = {**SHARED_DEFAULTS, **DEFAULTS[kind], **written}
        return cls(kind, SpecReader(values, "spec.training"), spec.child("generation"), frozenset(written))


def config_arguments(options: TrainerOptions, context: ArgumentContext) -> Arguments:
    """Return the arguments of TRL's config class.

    Raises:
        UserError: A value that TRL does not accept, or an effect that it does not have.
    """
    types = config_fields(options.kind)
    found: Arguments = {}
    for block, fields in (("training", options.training), ("generation", options.generation)):
        table = cells(options.kind, block)
        ways = dict.fromkeys(cell.name for cell in table.values() if cell.way == "computed")
        for way in ways:
            found |= _COMPUTED[way](options, context)
        for name, cell in table.items():
            value = fields.get(name)
            if value is None:
                continue
            if cell.way == "refused" and not is_neutral(name, value):
                raise UserError(f"{fields.path}.{name} is not possible here: {cell.reason}")
            if cell.way == "config":
                found[cell.name] = coerced(value, types[cell.name], f"{fields.path}.{name}")
    found |= _passed_arguments(options)
    for name in _ON_GPU:
        if found.get(name) and not context.cuda:
            raise UserError(f"spec.training.{name} needs a GPU, and this task has none")
    # The filter of transformers would log a loss of NaN as 0.
    return {"logging_nan_inf_filter": False, **found, **_fixed_arguments(context)}


def _passed_arguments(options: TrainerOptions) -> Arguments:
    """Return the fields that only TRL knows."""
    found: Arguments = {}
    for name, word in passed_on(options.kind).items():
        value = options.training.get(name)
        if value is not None:
            value = SWITCH_WORDS.get(name, {}).get(str(value).strip().lower(), value)
            found[name] = coerced(value, word, f"spec.training.{name}")
    return found


def coerced(value: Any, word: str, where: str) -> Any:
    """Return `value` with the type of TRL's field; numbers and booleans may be written as text.

    Raises:
        UserError: It has another type.
    """
    block, _, name = where.rpartition(".")
    fields = SpecReader({name: value}, block)
    if word == "int":
        number = fields.number(name, 0.0)
        if number != int(number):
            raise fields.error(name, value, "a whole number")
        return int(number)
    if word == "float":
        return fields.number(name, 0.0)
    if word == "bool":
        return fields.flag(name, default=False)
    if word == "str":
        return str(value)
    if word == "list":
        return list(value) if isinstance(value, (list, tuple)) else [value]
    if word == "dict" and not isinstance(value, Mapping):
        raise fields.error(name, value, "a mapping")
    return value


def with_files(arguments: Arguments, sources: SourceLookup) -> Arguments:
    """Return the arguments with absolute paths: relative ones start from the spec's folder.

    Raises:
        UserError: A file does not exist.
    """
    arguments = sources.admit_files(arguments, TRAINING_FILES)
    named = arguments.get("deepspeed")
    if named is None or isinstance(named, Mapping):
        return arguments
    if not isinstance(named, str):
        raise UserError(f"spec.training.deepspeed must be a mapping or the path of a JSON file, found {named!r}")
    file = sources.local(named)
    if local_path(named) is None:
        raise UserError(f"spec.training.deepspeed must be a local JSON file or a mapping, found {named!r}")
    if not file.is_file():
        raise UserError(f"spec.training.deepspeed: there is no file {file}")
    return {**arguments, "deepspeed": str(file)}


def lora_arguments(lora: SpecReader) -> Arguments:
    """Return the arguments of `peft.LoraConfig` [protocol 4.4].

    Raises:
        UserError: A value has the wrong type.
    """
    modules = lora.get("target_modules") or ["q_proj", "k_proj", "v_proj", "o_proj"]
    if not isinstance(modules, list):
        raise UserError("lora.target_modules must be a list of module names")
    return {
        "r": lora.integer("r", 16, minimum=1),
        "lora_alpha": lora.number("alpha", 32),
        "lora_dropout": lora.number("dropout", 0.05),
        "bias": lora.text("bias") or "none",
        "target_modules": "all-linear" if modules == ["all-linear"] else [str(name) for name in modules],
        "task_type": (lora.text("task_type") or "CAUSAL_LM").upper(),
        "use_rslora": lora.flag("use_rslora", default=False),
    }


def rollout_sizes(options: TrainerOptions) -> tuple[int, int, int]:
    """Return `mini_batches.batches_of` for the sizes of a spec.

    Raises:
        UserError: The sizes do not divide.
    """
    training = options.training
    sizes = {name: training.integer(name, 1, minimum=1) for name in sorted(SIZES & options.given)}
    note = (replaced := replaced_mini_batch(sizes)) and f"training.{replaced_text(replaced)}"
    if note and note not in options.notes:
        options.notes.append(note)
    try:
        return batches_of(sizes)
    except UnevenBatchesError as error:
        raise UserError(f"spec.training.{error.field}: {error}; choose sizes that divide") from None


def _steps(options: TrainerOptions, _context: ArgumentContext) -> Arguments:
    steps = _step_limit(options.training)
    return {"max_steps": steps} if steps else {}


def _step_limit(training: SpecReader) -> int | None:
    """Return `steps` or `max_steps`, which end a training before its epochs do; None if neither is set."""
    for name in ("steps", "max_steps"):
        value = training.get(name)
        if value is not None and (number := int(training.number(name, -1))) > 0:
            return number
    return None


def _episodes(options: TrainerOptions, context: ArgumentContext) -> Arguments:
    """PPO counts answers: `steps` batches of them, else `num_train_epochs` x prompts."""
    steps = _step_limit(options.training)
    return {"total_episodes": steps * rollout_sizes(options)[0] * context.world} if steps else {}


def _batch(options: TrainerOptions, _context: ArgumentContext) -> Arguments:
    training = options.training
    name = "per_device_train_batch_size" if "per_device_train_batch_size" in options.given else "batch_size"
    return {"per_device_train_batch_size": training.integer(name, 1, minimum=1)}


def _rollout(options: TrainerOptions, _context: ArgumentContext) -> Arguments:
    """TRL generates `per_device_train_batch_size` x `gradient_accumulation_steps` answers at once."""
    batch, parts, steps = rollout_sizes(options)
    return {
        "per_device_train_batch_size": batch // steps,
        "gradient_accumulation_steps": steps,
        "num_mini_batches": parts,
        "local_rollout_forward_batch_size": min(batch, 64),
        "num_sample_generations": 0,
    }


def _warmup(options: TrainerOptions, _context: ArgumentContext) -> Arguments:
    """Transformers 5 reads a fraction in `warmup_steps` as the ratio of all steps."""
    steps = options.training.integer("warmup_steps", 0)
    ratio = options.training.number("warmup_ratio", 0.0)
    return {"warmup_steps": steps or min(ratio, 0.999_999)}


def _saving(options: TrainerOptions, _context: ArgumentContext) -> Arguments:
    training = options.training
    strategy = (training.text("save_strategy") or "steps").lower()
    name = "save_freq" if _prefers_freq(options) else "save_steps"
    keep = max(_FEWEST_CHECKPOINTS, training.integer("save_total_limit", _FEWEST_CHECKPOINTS, minimum=1))
    return {
        "save_strategy": strategy,
        "save_steps": training.integer(name, 100, minimum=1),
        "save_total_limit": keep,
    }


def _prefers_freq(options: TrainerOptions) -> bool:
    """Both spellings mean the same: the one that the spec sets counts, then the default of the task type."""
    if {"save_freq", "save_steps"} & options.given:
        return "save_freq" in options.given
    return "save_freq" in DEFAULTS[options.kind]


def _length(options: TrainerOptions, _context: ArgumentContext) -> Arguments:
    return {"max_length": max_length(options)}


def max_length(options: TrainerOptions) -> int:
    """Return the largest number of tokens of one row."""
    name = "max_length" if "max_length" in options.given else "max_seq_length"
    return options.training.integer(name, 1024, minimum=1)


def _seed(options: TrainerOptions, _context: ArgumentContext) -> Arguments:
    seed = int(options.training.number("seed", 42))
    return {"seed": seed, "data_seed": seed}


def precision_of(options: TrainerOptions, context: ArgumentContext) -> Arguments:
    """TRL uses bf16 by default, so both are always set."""
    half, brain = options.training.flag("fp16", default=False), options.training.flag("bf16", default=False)
    if half and not context.cuda:
        options.notes.append("fp16 needs a GPU; the training runs in float32")
        half = False
    return {"fp16": half, "bf16": brain}


def sharding_of(options: TrainerOptions, context: ArgumentContext) -> Arguments:
    """FSDP or DeepSpeed shard a model over devices only if the spec requests it; otherwise each has a whole copy."""
    training = options.training
    fsdp, config = training.get("fsdp"), training.get("fsdp_config")
    stage = training.get("zero_stage")
    deepspeed = training.get("deepspeed") or (_zero(int(stage)) if stage else None)
    installed = importlib.util.find_spec("deepspeed") is not None
    if (
        not deepspeed
        and not fsdp
        and training.flag("auto_deepspeed", default=False)
        and context.cuda
        and context.world > 1
    ):
        if installed:
            deepspeed = _zero(training.integer("auto_deepspeed_stage", _AUTO_STAGE))
        else:
            options.notes.append("auto_deepspeed needs a package that is not installed (deepspeed); DDP is used")
    if fsdp and not context.cuda:
        options.notes.append("fsdp shards over GPUs only; here whole models are trained (DDP)")
        return {}
    if deepspeed and not installed:
        raise UserError("spec.training.deepspeed needs a package that is not installed: pip install deepspeed")
    found: Arguments = {"deepspeed": deepspeed} if deepspeed else {}
    if fsdp:
        words = " ".join(map(str, fsdp)) if isinstance(fsdp, list) else str(fsdp)
        found |= {"fsdp": "full_shard auto_wrap" if fsdp is True else words}
        found |= {"fsdp_config": config} if config else {}
    return found


def _zero(stage: int) -> dict[str, Any]:
    """Return a DeepSpeed configuration with only the stage; transformers adds the rest."""
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {"zero_optimization": {"stage": stage}, **dict.fromkeys(auto, "auto")}


def _generation(options: TrainerOptions, _context: ArgumentContext) -> Arguments:
    fewest = options.generation.integer("min_new_tokens", 0)
    return {"generation_kwargs": {"min_new_tokens": fewest}} if fewest else {}


def _cache(options: TrainerOptions, _context: ArgumentContext) -> Arguments:
    """TRL's PPO empties the cache by itself as well."""
    return {"torch_empty_cache_steps": 1} if options.training.flag("optimize_cuda_cache", default=False) else {}


def _stop(options: TrainerOptions, context: ArgumentContext) -> Arguments:
    """An answer ends at the model's end token; `generation.stop` may add one more single token."""
    stop = options.generation.get("stop")
    texts = [stop] if isinstance(stop, str) else list(stop or [])
    ids = [context.token_of(str(text)) for text in texts]
    if None in ids:
        raise UserError(
            f"spec.generation.stop {texts[ids.index(None)]!r} is more than one token of this model; trainers stop at "
            "single tokens only"
        )
    if options.kind == "ppo":
        if len(ids) > 1:
            raise UserError("spec.generation.stop: PPO in TRL stops at one token; name one text only")
        return {"stop_token_id": ids[0]} if ids else {"stop_token": "eos"}
    if not ids:
        return {}
    fewest = _generation(options, context).get("generation_kwargs", {})
    return {"generation_kwargs": {**fewest, "eos_token_id": [i for i in (context.end, *ids) if i is not None]}}


def _fixed_arguments(context: ArgumentContext) -> Arguments:
    """Return the arguments that a spec cannot change."""
    return {
        "output_dir": context.output_dir,
        "disable_tqdm": True,
        "report_to": "none",  # we add the TensorBoard callback, with its own folder
        "logging_first_step": True,  # so that a short training has a curve too
        "dataloader_pin_memory": context.cuda,
        "use_cpu": not context.cuda,
        "eval_strategy": "no",
        **({"ddp_backend": "gloo"} if context.world > 1 and not context.cuda else {}),
    }


_COMPUTED: dict[str, Callable[[TrainerOptions, ArgumentContext], Arguments]] = {
    "steps": _steps,
    "episodes": _episodes,
    "batch": _batch,
    "rollout": _rollout,
    "warmup": _warmup,
    "saving": _saving,
    "length": _length,
    "seed": _seed,
    "precision": precision_of,
    "sharding": sharding_of,
    "generation": _generation,
    "cache": _cache,
    "stop": _stop,
}
