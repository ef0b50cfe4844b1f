"""Studies: definition and runs of experiments to compare, and reports on them."""

from importlib.util import find_spec

from mmsmca.errors import UserError

for _name in ('pandas', 'pydantic', 'submitit', 'tabulate'):
    if find_spec(_name) is None:
        raise UserError(f"{_name} is not installed: pip install 'mmsmca[studies]'")
