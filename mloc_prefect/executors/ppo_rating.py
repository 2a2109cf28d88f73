"""How answers are rated in TRL's PPO: by Python functions, whatever rates them.

Its trainer wants a module that shares the tokenizer of the model in training, so it gets a stand-in, and its
`get_reward` is taught to ask that one.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.executors.rewards import Scorer
    from mloc_prefect.executors.training_data import Row


class Turns:
    """Makes batches of prompts, and knows which rows they are from when they are rated.

    TRL's loop hands on token ids only, and these do not tell: rows with the same prompt may have other columns. It
    rates prompts in the order in which they were drawn.

    Args:
        tokenizer: Pads the prompts.
        prompts: Token ids of each row's prompt.
        rows: The rows.
    """

    def __init__(self, tokenizer: Any, prompts: Sequence[list[int]], rows: Sequence[Row]) -> None:
        from transformers import DataCollatorWithPadding

        self._padded = DataCollatorWithPadding(tokenizer)
        self._prompts, self._rows = prompts, rows
        self._drawn: deque[int] = deque()

    def features(self) -> list[dict[str, Any]]:
        """Return the rows of the trainer's data set."""
        return [{"input_ids": ids, "row": number} for number, ids in enumerate(self._prompts)]

    def __call__(self, features: Sequence[dict[str, Any]]) -> Any:
        """Return a batch."""
        self._drawn.extend(feature["row"] for feature in features)
        return self._padded([{"input_ids": feature["input_ids"]} for feature in features])

    def take(self, batch: Any, pad: int) -> list[Row]:
        """Return the rows of the next prompts.

        Args:
            batch: Their token ids, padded.
            pad: The id that pads, which may be part of prompts too.

        Raises:
            RuntimeError: They are not the prompts whose turn it is.
        """
        found: list[Row] = []
        for ids in batch.tolist():
            number = self._drawn.popleft()
            if [i for i in ids if i != pad] != [i for i in self._prompts[number] if i != pad]:
                raise RuntimeError("the trainer rates prompts in another order than it has drawn them in")
            found.append(self._rows[number])
        return found


def stand_in(tokenizer: Any, scorer: Scorer, turns: Turns, check: Callable[[], None]) -> Any:
    """Return a module that TRL takes for a reward model."""
    import torch

    class Rated(torch.nn.Module):  # type: ignore[misc]  # torch is not typed here
        base_model_prefix = "backbone"

        def __init__(self) -> None:
            super().__init__()
            self.backbone = self.score = torch.nn.Identity()

        def rate(self, ids: Any, pad: int, context: int) -> Any:
            """Return one number for each row of `ids` (prompt of `context` tokens, then the answer)."""
            check()
            rows = turns.take(ids[:, :context], pad)
            prompts, answers = (
                [tokenizer.decode(row[row != pad], skip_special_tokens=True) for row in part]
                for part in (ids[:, :context], ids[:, context:])
            )
            return torch.tensor(scorer(prompts, answers, rows), dtype=torch.float32, device=ids.device)

    return Rated()


def ask_stand_in() -> None:
    """Let TRL's trainer ask our stand-in for rewards."""
    from trl.experimental.ppo import ppo_trainer

    if hasattr(ppo_trainer, "mloc_original"):
        return
    original = ppo_trainer.mloc_original = ppo_trainer.get_reward

    def get_reward(model: Any, ids: Any, pad: int, context: int) -> Any:
        if hasattr(model, "rate"):
            return None, model.rate(ids, pad, context), None
        return original(model, ids, pad, context)

    ppo_trainer.get_reward = get_reward
