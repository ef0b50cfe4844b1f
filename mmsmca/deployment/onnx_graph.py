"""What an ONNX graph consists of, where its time goes, its form in int8, and its AP."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config
from mmengine.structures import InstanceData
from onnxruntime.quantization import quantize_dynamic

from .onnx_comparison import run_onnx


def quantize(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Quantise the matrix products with weights to int8, dynamically, by onnxruntime's quantiser.

    Convolutions stay: onnxruntime's CPU provider has no fast kernel for dynamic ones.

    Args:
        proto: The graph, which is not changed.

    Returns:
        Another graph, with the same inputs and outputs.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'int8.onnx'
        quantize_dynamic(copy, path, op_types_to_quantize=['MatMul', 'Gemm'])
        return onnx.load(path)


def operator_counts(proto: onnx.ModelProto) -> Counter[str]:
    """How many nodes of each operator a graph has."""
    return Counter(node.op_type for node in proto.graph.node)


def operator_times(proto: onnx.ModelProto, image: np.ndarray, threads: int) -> dict[str, float]:
    """Seconds that each operator takes in one pass, of the graph as onnxruntime rewrites it.

    Args:
        proto: The graph.
        image: BGR, (H, W, 3), uint8.
        threads: How many run it.

    Returns:
        By operator, the longest first; from onnxruntime's own profile of the second pass.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / 'profile')
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=['CPUExecutionProvider']
        )
        for _ in range(2):
            run_onnx(session, [image])
        events = json.loads(Path(session.end_profiling()).read_text())
    passes = [event for event in events if event['name'] == 'model_run']
    start = max(event['ts'] for event in passes)
    times: Counter[str] = Counter()
    for event in events:
        if event['name'].endswith('_kernel_time') and event['ts'] >= start:
            times[event['args']['op_name']] += event['dur'] / 1e6
    return dict(times.most_common())


def average_precision(session: onnxruntime.InferenceSession, cfg: Config) -> float:
    """Box AP of a graph on a config's test data, by its own pipeline and evaluator.

    Args:
        session: The graph.
        cfg: Config of the detector.

    Returns:
        COCO's AP over IoU 0.50 to 0.95, in [0, 1].
    """
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    metric = METRICS.build(cfg.test_evaluator)
    metric.dataset_meta = dataset.metainfo
    for data in map(dataset.__getitem__, range(len(dataset))):
        sample = data['data_samples']
        image = data['inputs'].permute(1, 2, 0).numpy()
        boxes, scores, labels = map(torch.from_numpy, run_onnx(session, [image])[0])
        boxes = boxes / torch.tensor(sample.scale_factor).repeat(2)
        sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
        metric.process({}, [sample.to_dict()])
    return metric.evaluate(len(dataset))['coco/bbox_mAP']
