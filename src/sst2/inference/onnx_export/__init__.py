"""What `sst2 export` alone needs: a trained model as ONNX, for machines without torch."""
