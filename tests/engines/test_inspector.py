"""The engine inspector's JSON: detailed, names alone, older, damaged; and the join with times."""

import json
from typing import Any

import pytest

from taylorseer.engines.engine_times import LayerTime
from taylorseer.engines.inspector import EngineLayer, LayerRow, LayerTensor, layer_table, read_engine_layers
from taylorseer.errors import BackendError


def tensor(name: str, dimensions: list[int], dtype: str) -> dict[str, Any]:
    return {"Name": name, "Dimensions": dimensions, "Strides": [1], "Datatype": dtype, "Format": "(Linear) Row major"}


DETAILED = {
    "Layers": [
        {
            "Name": "embed_MulAddSilu_0",
            "LayerType": "runtime_fusion",
            "Inputs": [tensor("timestep", [-1, 256], "Float")],
            "Constants": [tensor("weight", [256, 32], "BFloat16")],
            "Outputs": [tensor("embedded", [-1, 32], "BFloat16")],
            "TacticName": "gemm_128x64_0x5e",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: node_Gemm_1]\u001f[ONNX Layer: node_Sigmoid_2]",
        },
        {"Name": "signal_1", "LayerType": "signal", "Inputs": [], "Outputs": [], "TacticName": "", "Metadata": ""},
    ],
    "I/O Tensors": [],
}


def time(name: str, milliseconds: float) -> LayerTime:
    return LayerTime(name=name, total_ms=milliseconds, average_ms=milliseconds, median_ms=milliseconds, percent=50)


def test_detailed_layers() -> None:
    embed, signal = read_engine_layers(json.dumps(DETAILED))
    assert embed == EngineLayer(
        name="embed_MulAddSilu_0",
        kind="runtime_fusion",
        inputs=(LayerTensor(name="timestep", shape=(-1, 256), dtype="Float"),),
        outputs=(LayerTensor(name="embedded", shape=(-1, 32), dtype="BFloat16"),),
        tactic="gemm_128x64_0x5e",
        onnx_nodes=("node_Gemm_1", "node_Sigmoid_2"),
    )
    assert signal == EngineLayer(name="signal_1", kind="signal")


def test_names_alone() -> None:
    assert read_engine_layers('{"Layers": ["a", "b"]}') == (EngineLayer(name="a"), EngineLayer(name="b"))


def test_dtype_and_format_in_one_as_older_versions_have_it() -> None:
    old = {"Name": "x", "Dimensions": [1], "Format/Datatype": "Row major linear FP16 format"}
    (layer,) = read_engine_layers(json.dumps({"Layers": [{"Name": "a", "Inputs": [old], "TacticValue": "0x1"}]}))
    assert layer.inputs[0].dtype == "Row major linear FP16 format" and layer.tactic == "0x1"


def test_the_join_keeps_the_engines_order_and_loses_no_time() -> None:
    layers = tuple(EngineLayer(name=name) for name in ("b", "a", "wait"))
    a, b, other = time("a", 1), time("b", 2), time("copy", 3)
    assert layer_table(layers, [a, b, other]) == (
        LayerRow(name="b", layer=layers[0], time=b),
        LayerRow(name="a", layer=layers[1], time=a),
        LayerRow(name="wait", layer=layers[2], time=None),
        LayerRow(name="copy", layer=None, time=other),
    )


def test_a_shared_name_is_timed_once() -> None:
    rows = layer_table([EngineLayer(name="a"), EngineLayer(name="a")], [time("a", 1)])
    assert [row.time is not None for row in rows] == [True, False]


def test_text_that_is_no_json() -> None:
    with pytest.raises(BackendError, match=r"text is no JSON: .*Ask it for LayerInformationFormat\.JSON"):
        read_engine_layers("Layers: a, b")


@pytest.mark.parametrize("text", ["[]", "{}", '{"Layers": 3}'])
def test_json_without_layers(text: str) -> None:
    with pytest.raises(BackendError, match="has no list of 'Layers'"):
        read_engine_layers(text)


@pytest.mark.parametrize("layer", [{}, {"Name": 3}, 7])
def test_a_layer_without_a_name(layer: Any) -> None:
    with pytest.raises(BackendError, match="Layer 1 of the engine inspector's JSON has no name"):
        read_engine_layers(json.dumps({"Layers": ["a", layer]}))


@pytest.mark.parametrize("inputs", [3, ["x"], [{"Dimensions": ["n"]}], [{"Dimensions": 4}]])
def test_tensors_of_an_unknown_schema(inputs: Any) -> None:
    with pytest.raises(BackendError, match="Layer 0 of the engine inspector's JSON has Inputs of an unknown schema"):
        read_engine_layers(json.dumps({"Layers": [{"Name": "a", "Inputs": inputs}]}))
