"""What runs around a model: hooks, optimizer wrappers, support for CPUs."""
