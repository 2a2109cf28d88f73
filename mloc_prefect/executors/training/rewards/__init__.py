"""Scores answers in ppo and grpo.

Rewards are functions of prompts, answers and rows. They know nothing of the trainers that use them.

* `answer_columns`: the columns that rules compare answers with.
* `number_reading`: the last number of a text.
* `reward_model`: a text classifier as reward.
* `reward_functions`: functions of users.
* `scorers`: rules, user functions, and the weighted sum of rewards.
"""
