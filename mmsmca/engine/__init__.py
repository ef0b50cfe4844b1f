"""Everything that runs around a model: hooks, optimizer wrappers, support for CPUs."""
