"""Configure and run trainings: one, many, on many devices."""
