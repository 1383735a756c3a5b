"""Networks stored as graphs of operators (ONNX, TensorFlow Lite, TensorFlow.js) as torch modules.

Such a file comes with a runtime that only predicts. Rebuilt from torch operators, the same network
has gradients: a recogniser can guide a morph, a denoiser can be sampled through.
"""

from adjointdeis.faces.graphs.graph import Graph, GraphError, UnsupportedOperator
from adjointdeis.faces.graphs.onnx_file import load_onnx
from adjointdeis.faces.graphs.tfjs_file import load_tfjs
from adjointdeis.faces.graphs.tflite_file import load_tflite

__all__ = [
    "Graph",
    "GraphError",
    "UnsupportedOperator",
    "load_onnx",
    "load_tfjs",
    "load_tflite",
]
