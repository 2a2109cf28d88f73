"""Rewards in TRL's PPO trainer, from any Python function.

The trainer requires a module that shares the tokenizer of the trained model. It gets a stand-in, and its `get_reward`
is patched to call the stand-in.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.executors.training.rewards.scorers import Scorer
    from mloc_prefect.executors.training.training_rows import Row


class RatingOrder:
    """Builds batches of prompts, and knows their rows when the answers are scored.

    TRL's loop passes token ids only, which do not identify a row: rows with the same prompt may differ in other
    columns. It scores prompts in the order in which they were drawn.

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
            pad: The padding id, which may also occur in prompts.

        Raises:
            RuntimeError: They are not the prompts that come next.
        """
        found: list[Row] = []
        for ids in batch.tolist():
            number = self._drawn.popleft()
            if [i for i in ids if i != pad] != [i for i in self._prompts[number] if i != pad]:
                raise RuntimeError("the trainer scores prompts in another order than it has drawn them in")
            found.append(self._rows[number])
        return found


def reward_stand_in(tokenizer: Any, scorer: Scorer, order: RatingOrder, check: Callable[[], None]) -> Any:
    """Return a module that TRL accepts as a reward model."""
    import torch

    class RewardStandIn(torch.nn.Module):  # type: ignore[misc]  # torch is not typed here
        base_model_prefix = "backbone"

        def __init__(self) -> None:
            super().__init__()
            self.backbone = self.score = torch.nn.Identity()

        def rate(self, ids: Any, pad: int, context: int) -> Any:
            """Return one number per row of `ids` (prompt of `context` tokens, then the answer)."""
            check()
            rows = order.take(ids[:, :context], pad)
            prompts, answers = (
                [tokenizer.decode(row[row != pad], skip_special_tokens=True) for row in part]
                for part in (ids[:, :context], ids[:, context:])
            )
            return torch.tensor(scorer(prompts, answers, rows), dtype=torch.float32, device=ids.device)

    return RewardStandIn()


def patch_get_reward() -> None:
    """Make TRL's trainer call our stand-in for rewards."""
    from trl.experimental.ppo import ppo_trainer

    if hasattr(ppo_trainer, "mloc_original"):
        return
    original = ppo_trainer.mloc_original = ppo_trainer.get_reward

    def get_reward(model: Any, ids: Any, pad: int, context: int) -> Any:
        if hasattr(model, "rate"):
            return None, model.rate(ids, pad, context), None
        return original(model, ids, pad, context)

    ppo_trainer.get_reward = get_reward
