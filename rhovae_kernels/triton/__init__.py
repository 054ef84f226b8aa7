"""The ops in Triton: one module per op, called below autograd with arguments already checked.

They run on CUDA and ROCm tensors, and on CPU tensors through Triton's interpreter.
"""
