"""The page about training shows the tables that the code reads."""

from __future__ import annotations

from pathlib import Path

from mloc_prefect.executors.training.rewards.scorers import RULES
from mloc_prefect.tasks.training import rewards, training_table

PAGE = (Path(__file__).parents[3] / "docs" / "training.md").read_text()


def test_tables_are_those_of_the_code() -> None:
    for table in (training_table.TRAINING, training_table.GENERATION, training_table.LORA):
        assert table.strip() in PAGE


def test_every_rule_is_shown() -> None:
    assert set(rewards.RULES) == set(RULES)
    for name in RULES:
        assert f"{{name: {name}," in PAGE
