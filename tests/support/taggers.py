"""Small real taggers: ONNX files in the formats that taggers are published in, answering to plain colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CSV = """tag_id,name,category,count
1,rating_safe,9,100
2,red_hair,0,90
3,green_(dress),0,80
4,blue_sea,0,70
5,^_^,0,60
6,zorp,4,50
"""
# What each tag answers to, in blue, green, red (WD) with a bias; sigmoid of the sum.
WEIGHTS = np.array(
    [[0, 0, 0, 0.1, 0, 0], [0, 0, 0.1, 0, 0, 0], [0, 0.1, 0, 0, 0, 0.06]], np.float32
)  # rows: blue, green, red
BIAS = np.array([5, -10, -10, -10, -0.5, -12], np.float32)


def tagger(
    folder: Path, *, batch: int | str = "N", channels: int = 3, tags: int = 6, csv: str = CSV, kind: str = "FLOAT",
    answers_to: np.ndarray = WEIGHTS, answer: str = "tags",
) -> Path:
    """Write model.onnx and selected_tags.csv of the WD family into a folder; returns the folder.

    Args:
        folder: Is made.
        batch: Pictures that it takes at a time.
        channels: Of a picture.
        tags: How many it answers with.
        csv: Its list of tags.
        kind: Of numbers that it takes.
        answers_to: The weight of each channel in each tag.
        answer: `tags`, or `best`: a single number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = helper.make_tensor_value_info("input_1", getattr(TensorProto, kind), [batch, 448, 448, channels])
    made = helper.make_tensor_value_info(answer, TensorProto.FLOAT, [batch, tags] if answer == "tags" else [])
    nodes = [
        helper.make_node("Cast", ["input_1"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["scores"]),
        helper.make_node("Add", ["scores", "bias"], ["biased"]),
        helper.make_node("Sigmoid", ["biased"], ["tags"]),
        helper.make_node("ReduceMax", ["tags"], ["best"], keepdims=0),
    ]
    weights = np.zeros((channels, tags), np.float32)
    weights[:3, :6] = answers_to[:channels, :tags]
    constants = [
        numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.resize(BIAS, tags), "bias"),
    ]
    graph = helper.make_graph(nodes, "tagger", [given], [made], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))
    (folder / "selected_tags.csv").write_text(csv, encoding="utf-8")
    return folder
