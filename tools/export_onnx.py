"""Export a trained SMCA to ONNX, and compare the graph with PyTorch.

Example: python tools/export_onnx.py configs/smca/smca_r50_8xb2-50e_coco.py smca_r50.pth smca.onnx

Exit status: 0 if the graph was written; 1 if not, because it differs from PyTorch by more than
the tolerances; 2 if config, checkpoint, data or destination cannot be used.
"""

import sys

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
from mmsmca.deployment.export import export, parser
from mmsmca.errors import command

try:
    from mmsmca.deployment import onnx_graph
except ModuleNotFoundError as error:
    if not error.name.startswith('onnx'):
        raise
    print(
        f"export_onnx.py: error: {error.name} is not installed: pip install 'mmsmca[onnx]'",
        file=sys.stderr,
    )
    sys.exit(2)


@command
def main() -> int:
    """Export, and print how well the graph agrees with PyTorch."""
    return 0 if export(parser(__doc__.splitlines()[0], '.onnx').parse_args(), onnx_graph) else 1


if __name__ == '__main__':
    sys.exit(main())
