"""Export a checkpoint: to an ONNX graph, a TensorRT engine, a GGUF file or a compiled package.

An ONNX graph is traced without weights; they are streamed in afterwards. Of these modules the planner imports those
without torch and onnx: graph_layouts, preflight, supported, gguf_blocks, tensorrt and
tensorrt_capabilities.
"""
