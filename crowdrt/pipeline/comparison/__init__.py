"""Methods of compression under one protocol: a sweep of trainings, and what came out compared."""
