"""Rows for trainings whose spec has none, as MLOC uses demo rows of its own [protocol 4.5]."""

from __future__ import annotations

DEMO_PROMPTS = (
    "Explain in one sentence what a queue is:",
    "Thank somebody for a careful bug report:",
    "Say why a test should fail before it passes:",
    "Describe the sea to a child:",
)

DEMO_PAIRS = (
    {
        "prompt": "How do I keep a list sorted while I add to it?",
        "chosen": " Insert with bisect.insort, which finds the place by halving.",
        "rejected": " Lists cannot do that.",
    },
    {
        "prompt": "What is the capital of Austria?",
        "chosen": " Vienna.",
        "rejected": " I would rather not say.",
    },
    {
        "prompt": "My program is slow. What should I do first?",
        "chosen": " Measure where the time goes, then change that place.",
        "rejected": " Buy a faster computer.",
    },
    {
        "prompt": "Why do cats purr?",
        "chosen": " Often because they are content, sometimes to calm themselves.",
        "rejected": " Because of the engine inside.",
    },
)
