"""From a plan to a Prefect flow, and the dispatchers that run its stages."""
