"""Other programs that read what `build.onnx` and `build.gguf` write: same tokens, same greedy continuation."""
