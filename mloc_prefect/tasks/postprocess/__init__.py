"""Rules of `spec.postprocess` that planning and executors share.

They say what the fields mean and know nothing of files or of pydantic: executor environments may lack our dependencies.

* `export_rules`: where the fields of an export take their values from.
"""
