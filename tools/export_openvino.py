"""Export a trained SMCA to OpenVINO, and compare the model with PyTorch.

Example: python tools/export_openvino.py configs/smca/smca_r50_8xb2-50e_coco.py r50.pth r50.xml

Exit status: 0 if the model was written; 1 if not, because it differs from PyTorch by more than
the tolerances; 2 if config, checkpoint, data or destination cannot be used.
"""

import sys

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
from mmsmca.deployment.export import export, parser
from mmsmca.errors import command

try:
    from mmsmca.deployment import openvino_model
except ModuleNotFoundError as error:
    if error.name not in ('nncf', 'openvino'):
        raise
    print(
        f"export_openvino.py: error: {error.name} is not installed: pip install 'mmsmca[openvino]'",
        file=sys.stderr,
    )
    sys.exit(2)


@command
def main() -> int:
    """Export, and print how well the model agrees with PyTorch."""
    return 0 if export(parser(__doc__.splitlines()[0], '.xml').parse_args(), openvino_model) else 1


if __name__ == '__main__':
    sys.exit(main())
