"""Executors: the code of task types, loaded by string path in a host process only."""
