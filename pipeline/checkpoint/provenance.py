"""Which checkpoint tensors each model parameter is computed from.

`sanitize` of a model renames, stacks, splits and converts tensors lazily.  MLX can write the graph
of lazy arrays as DOT text; walking it backwards from a parameter ends at exactly the tensors it
needs, whatever `sanitize` did.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

import mlx.core as mx

from pipeline.errors import UnsupportedModel

_OPERATION = re.compile(r'^\{ (?P<node>\d+) \[label ="(?P<label>[^"]*)"')
_PRODUCES = re.compile(r'^(?P<node>\d+) -> "(?P<array>[^"]+)"')
_CONSUMES = re.compile(r'^"(?P<array>[^"]+)" -> (?P<node>\d+)')


class _Graph:
    """The DOT text as two maps.  Arrays have names that MLX made up; operations have numbers."""

    def __init__(self, text: str) -> None:
        self.inputs: dict[str, list[str]] = {}  # operation -> arrays it reads
        self.producer: dict[str, str] = {}  # array -> operation that makes it
        self.loads: list[str] = []  # operations that read a tensor from a file, in order
        self.marks: list[str] = []  # StopGradient operations, in order
        for line in text.splitlines():
            if match := _CONSUMES.match(line):
                self.inputs[match["node"]].append(match["array"])
            elif match := _PRODUCES.match(line):
                self.producer[match["array"]] = match["node"]
            elif match := _OPERATION.match(line):
                self._operation(match["node"], match["label"])

    def _operation(self, node: str, label: str) -> None:
        self.inputs[node] = []
        if label == "Load":
            self.loads.append(node)
        elif label == "StopGradient":
            self.marks.append(node)

    def sources(self, node: str) -> set[str]:
        """The operations without inputs that `node` depends on."""
        seen, todo = {node}, [node]
        while todo:
            for array in self.inputs[todo.pop()]:
                producer = self.producer.get(array)
                if producer is not None and producer not in seen:
                    seen.add(producer)
                    todo.append(producer)
        return {node for node in seen if not self.inputs[node]}


def trace(
    tensors: Mapping[str, mx.array], parameters: Mapping[str, mx.array]
) -> dict[str, frozenset[str]]:
    """Parameter name -> names of the tensors it depends on.  Nothing is evaluated.

    `tensors` are lazy arrays from `mx.load`; `parameters` are lazy arrays made of them.  Operations
    are written in the order of their first visit, tensors first, so the n-th "Load" is the n-th
    tensor (MLX could take names for arrays, but at most 1024).  Each parameter gets an operation of
    its own on top, because one that `sanitize` left alone is the same array as its tensor.

    Raises UnsupportedModel if the graph does not have that form.
    """
    marked = [mx.stop_gradient(array) for array in parameters.values()]
    text = io.StringIO()
    mx.export_to_dot(text, list(tensors.values()), marked)
    graph = _Graph(text.getvalue())
    if len(graph.loads) != len(tensors) or len(graph.marks) != len(parameters):
        raise UnsupportedModel("mlx-lm evaluated weights while it built the model.")
    tensor_of = dict(zip(graph.loads, tensors, strict=True))
    return {
        name: frozenset(tensor_of[node] for node in graph.sources(mark) if node in tensor_of)
        for name, mark in zip(parameters, graph.marks, strict=True)
    }
