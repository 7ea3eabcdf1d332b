"""From a checkpoint to an ONNX graph: the structure is traced without weights, the weights are streamed in afterwards.

`carry` says how each weight goes into a graph and is read by the planner; everything else imports torch or onnx.
"""
