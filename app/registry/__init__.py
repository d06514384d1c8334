"""Models on disk: manifest, checkpoints, import and ONNX export."""
