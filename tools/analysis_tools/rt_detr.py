"""RT-DETR R50 of transformers, a rival of exported detectors: built, fused and exported."""

from pathlib import Path
from typing import Any

import onnx
import openvino
import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmsmca.deployment.onnx_graph import OPSET
from mmsmca.deployment.program import INPUTS, OUTPUTS


class DeployedRTDETR(nn.Module):
    """RT-DETR with random weights and the pre- and postprocessing of :class:`.DeployedSMCA`.

    Its re-parameterised branches are fused, as its authors deploy it. It has R50vd as backbone, 300
    queries, 6 decoder layers and 80 classes.
    """

    def __init__(self) -> None:
        from transformers import RTDetrConfig, RTDetrForObjectDetection

        super().__init__()
        config = RTDetrConfig(num_labels=80)  # type: ignore[call-arg]  # of its base class
        self.model = RTDetrForObjectDetection(config).model.eval()
        for module in [*self.model.modules()]:
            if isinstance(module, nn.BatchNorm2d):  # Nearly zero: all cells would score alike.
                nn.init.ones_(module.weight)
        for module in [*self.model.modules()]:
            for name, block in module.named_children():
                if type(block).__name__ == 'RTDetrRepVggBlock':
                    setattr(module, name, _fused(block))

    @torch.no_grad()
    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect as :meth:`.DeployedSMCA.forward`, without padding."""
        found = self.model(images.permute(0, 3, 1, 2).flip(1) / 255)
        scores = found.intermediate_logits[:, -1].sigmoid()
        boxes = bbox_cxcywh_to_xyxy(found.intermediate_reference_points[:, -1])
        best, indices = scores.flatten(1).topk(boxes.size(1), dim=1)
        queries = torch.div(indices, scores.size(-1), rounding_mode='floor')
        boxes = boxes.gather(1, queries.unsqueeze(-1).expand(-1, -1, 4))
        return boxes * sizes.flip(1).repeat(1, 2)[:, None], best, indices % scores.size(-1)

    def export(self, folder: Path, size: tuple[int, int]) -> None:
        """Write ``float32`` in both formats, for images of one size.

        Nothing is kept in float32 in bfloat16.

        Args:
            folder: Folder to write to.
            size: Height and width of the images.
        """
        inputs = torch.zeros((1, *size, 3), dtype=torch.uint8), torch.tensor([size])
        traced = torch.export.export(self, inputs, strict=False)
        exported = torch.onnx.export(
            traced,
            input_names=INPUTS,
            output_names=OUTPUTS,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert exported is not None  # It is None only without dynamo.
        onnx.save(exported.model_proto, folder / 'float32.onnx')
        model = openvino.convert_model(traced)
        for ports, names in ((model.inputs, INPUTS), (model.outputs, OUTPUTS)):
            for port, name in zip(ports, names, strict=True):
                port.get_tensor().set_names({name})
        openvino.save_model(model, folder / 'float32.xml', compress_to_fp16=False)


def _fused(block: Any) -> nn.Module:
    """One 3 x 3 convolution in place of a 3 x 3 and a 1 x 1, with their norms."""
    conv, point = (fuse_conv_bn_eval(x.conv, x.norm) for x in (block.conv1, block.conv2))
    with torch.no_grad():
        conv.weight += F.pad(point.weight, (1, 1, 1, 1))
        conv.bias += point.bias
    return nn.Sequential(conv, block.activation)
