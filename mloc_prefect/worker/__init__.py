"""The `mloc-gpu` worker: what the machine has, who holds it, and the warm engine that runs our flows."""
