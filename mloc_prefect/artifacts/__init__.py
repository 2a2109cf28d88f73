"""Files of tasks: atomic writes, manifests, stores, delivery, mirrors."""
