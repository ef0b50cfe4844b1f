"""A detector as an ONNX graph or as OpenVINO's IR, and how it compares with the detector."""
