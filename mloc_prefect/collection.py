"""What `prefect` imports on every command; must stay light and never fail."""
