"""Pictures of where the queries look: see ``docs/visualization.md``."""
