"""Chats: rows of messages, and the chat template that makes text of them, the same for every engine.

These modules know the tokenizer of a model and nothing else of it; which values are messages is in
`tasks.chat_messages`.

* `chat_rows`: what a row of the data asks: a text, or messages with tools.
* `chat_template`: renders messages with a chat template.
"""
