"""``torch.compile`` for the parts of a detector that map tensors to tensors."""

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmsmca.engine.unwrap import unwrapped

# The code between them loops over the images of a batch in Python: masks from image sizes, the
# matching, the detections.
PARTS = ('extract_feat', 'forward_encoder', 'forward_decoder')


@HOOKS.register_module()
class CompileHook(Hook):
    """Compile backbone and neck, encoder, and decoder of a DETR-like detector.

    MMEngine's option ``compile`` compiles the whole training step, including everything that varies
    from batch to batch, and nothing for inference. This hook compiles for both::

        custom_hooks = [dict(type='CompileHook')]

    Image sizes are dynamic: a part is compiled once for batches with padding, once for those
    without, and again for batches of a single image.

    Args:
        parts: Which of :data:`PARTS` to compile. Defaults to all.
        options: Arguments of ``torch.compile``. ``dynamic`` defaults to True.

    Raises:
        ValueError: If there is no such part.
    """

    def __init__(self, parts: Sequence[str] = PARTS, **options) -> None:
        if not set(parts) <= set(PARTS):
            raise ValueError(f'CompileHook.parts={list(parts)}: choose from {list(PARTS)}')
        self.parts = tuple(parts)
        self.options = {'dynamic': True, **options}

    def before_run(self, runner: Runner) -> None:
        """Mark the parts for compilation, which happens when each first runs."""
        model = unwrapped(runner.model)
        for part in self.parts:
            setattr(model, part, torch.compile(getattr(model, part), **self.options))
