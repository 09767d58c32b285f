"""A trained model at work: `predict` classifies sentences, `export` writes ONNX."""
