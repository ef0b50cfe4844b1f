"""What several tests need."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def config_path(name: str) -> str:
    """Path of a config file below ``configs/``."""
    return str(ROOT / 'configs' / name)
