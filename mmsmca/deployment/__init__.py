"""ONNX: the graph of a detector, and how it compares with the detector."""
