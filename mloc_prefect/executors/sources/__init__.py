"""Finds and reads models, data sets and pages: mirrors, local paths, fsspec URLs and the Hugging Face hub.

These modules answer "where is it" and "what are its rows". They know nothing of engines, prompts or training.

* `data_tables`: rows of single data files.
* `datasets_source`: the rows of `data.type: dataset`.
* `hub`: access to the Hugging Face hub.
* `models_source`: the weights of a model, with a fingerprint.
* `page_text`: the visible text of HTML pages.
* `source_lookup`: the rules by which a request looks up names.
* `splits`: split expressions such as `train[:200]`.
* `text_tables`: rows of JSON and CSV text.
"""
