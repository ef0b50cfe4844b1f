"""Export of a detector to ONNX or OpenVINO's IR, and comparison with the original."""
