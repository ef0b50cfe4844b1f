"""The classes that a checkpoint was trained on."""

import re
from collections.abc import Mapping, Sequence

from mmsmca.errors import first_difference

# How the classifier of DETR and SMCA ends, and of heads with a classifier per decoder layer.
CLASS_WEIGHTS = ('bbox_head.fc_cls.weight', 'bbox_head.cls_branches.0.weight')
# Tensors of DETR-like models with a row or an entry for every class.
CLASSIFIER = re.compile(r'(?:^|\.)(?:fc_cls|cls_branches\.\d+|label_embedding)\.')


def other_classes(
    checkpoint: dict, head: dict, datasets: Mapping[str, Sequence[str]]
) -> str | None:
    """Say how the classes of a checkpoint differ from those of a run, if they do.

    Its weights tell the number of classes, its ``meta`` their names.

    Args:
        checkpoint: Content of the checkpoint.
        head: Config of the model's head, with its ``num_classes``.
        datasets: Classes of the run's data sets, by config key.
    """
    state = checkpoint.get('state_dict', checkpoint)
    # MMEngine only warns about weights that do not fit, and skips them.
    weights = (weight for name, weight in state.items() if str(name).endswith(CLASS_WEIGHTS))
    weight = next(weights, None)
    if weight is not None and 'num_classes' in head:
        loss = head.get('loss_cls', {})
        # A softmax scores "no object" too.
        background = not loss.get('use_sigmoid', 'FocalLoss' in str(loss.get('type')))
        if len(weight) != head['num_classes'] + background:
            return (
                f'scores {len(weight) - background} classes, but model.bbox_head.num_classes is '
                f'{head["num_classes"]}'
            )
    trained_on = _checkpoint_classes(checkpoint)
    for key, classes in datasets.items():
        if trained_on and trained_on != list(classes):
            return (
                f'was trained on {len(trained_on)} classes, {key} has {len(classes)}; '
                f'{first_difference(trained_on, classes)}'
            )
    return None


def _checkpoint_classes(checkpoint: dict) -> list[str] | None:
    meta = checkpoint.get('meta') or {}
    # MMDetection 3 stores the names in `dataset_meta` (a list after training on several different
    # data sets), MMDetection 2 stored them as `CLASSES`.
    dataset_meta = meta.get('dataset_meta', meta)
    if not isinstance(dataset_meta, dict):
        return None
    classes = dataset_meta.get('classes', dataset_meta.get('CLASSES'))
    return list(classes) if isinstance(classes, (list, tuple)) else None
