"""The contract between the engine and a model file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from qgis_iic.engine import providers
from qgis_iic.engine.session import Session, model_file
from qgis_iic.protocol.errors import Cancelled, ModelInvalid, ModelNotFound, OutOfMemory
from tests.onnx_models import brightness_model, metadata, random_model

MODELS = Path(__file__).resolve().parents[2] / "models"


def test_outputs_are_clusters_classes_and_probabilities(tmp_path: Path) -> None:
    brightness_model(tmp_path / "m.onnx", building_clusters=(3,))
    session = Session(tmp_path / "m.onnx", "cpu")
    tiles = np.array([20, 90, 150, 230], np.float32)[None, None, None].repeat(3, axis=1)
    answer = session.run(tiles)
    assert answer.shape == (1, 3, 1, 4)
    assert answer.dtype == np.uint8
    np.testing.assert_array_equal(answer[0, 0, 0], [0, 1, 2, 3])
    assert answer[0, 2, 0, 3] == 254
    assert answer[0, 2, 0, 0] == 0


def test_the_mapping_of_the_caller_wins(tmp_path: Path) -> None:
    brightness_model(tmp_path / "m.onnx", building_clusters=(3,))
    session = Session(tmp_path / "m.onnx", "cpu", building_clusters=(0,))
    assert session.building_clusters == (0,)
    answer = session.run(np.full((1, 3, 1, 1), 10, np.float32))
    assert answer[0, 2, 0, 0] == 254
    with pytest.raises(ModelInvalid, match="not one of its 4"):
        Session(tmp_path / "m.onnx", "cpu", building_clusters=(4,))


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from qgis_iic.engine.providers import reserve_memory
from qgis_iic.engine.session import Session
def memory(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(kind)).split()[1])
reserve_memory(10**9)
session, side = Session(Path(sys.argv[1]), "cpu", precision=sys.argv[2]), int(sys.argv[3])
tile = np.full((1, 3, side, side), 100, np.float32)
before = memory("VmRSS")
for _ in range(2):
    session.run(tile)
print((memory("VmHWM") - before) / (side**2 * session.bytes_per_pixel))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from Linux's /proc")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("model", "side"), [("iic_rgb", 400), ("iic_rgb_small", 1000)])
def test_a_tile_takes_the_memory_that_is_planned_for(model: str, side: int, precision: str) -> None:
    # Piece by piece, ONNX Runtime takes up to twice as much; elsewhere its kernels may take less.
    command = [sys.executable, "-c", MEMORY, str(MODELS / f"{model}.onnx"), precision, str(side)]
    found = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.5 < found < 1.15


def test_an_unmatched_model_has_no_building_probability(tmp_path: Path) -> None:
    brightness_model(tmp_path / "m.onnx", building_clusters=None)
    session = Session(tmp_path / "m.onnx", "cpu")
    assert session.building_clusters is None
    assert session.run(np.full((1, 3, 2, 2), 250, np.float32))[0, 2].max() == 0


def test_a_model_with_a_head_needs_no_mapping(tmp_path: Path) -> None:
    brightness_model(tmp_path / "m.onnx", building_clusters=None, decision="probability")
    session = Session(tmp_path / "m.onnx", "cpu")
    assert session.decision == "probability"
    tiles = np.array([20, 250], np.float32)[None, None, None].repeat(3, axis=1)
    np.testing.assert_array_equal(session.run(tiles)[0, 2, 0], [0, 254])


def test_clusters_of_the_caller_decide_even_with_a_head(tmp_path: Path) -> None:
    brightness_model(tmp_path / "m.onnx", decision="probability")
    session = Session(tmp_path / "m.onnx", "cpu", building_clusters=(0,))
    assert (session.decision, session.building_clusters) == ("clusters", (0,))
    assert session.run(np.full((1, 3, 1, 1), 250, np.float32))[0, 2, 0, 0] == 254


def test_precisions_are_siblings(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    (tmp_path / "m.int8.onnx").touch()
    assert model_file(tmp_path / "m.onnx", "fp32") == tmp_path / "m.onnx"
    assert model_file(tmp_path / "m.onnx", "int8") == tmp_path / "m.int8.onnx"
    with pytest.raises(ModelNotFound, match=r"m\.fp16\.onnx"):
        model_file(tmp_path / "m.onnx", "fp16")


def test_a_precision_of_another_state_of_its_model_is_refused(tmp_path: Path) -> None:
    copy = {"precision": {"kind": "int8", "of_weights_sha256": "a"}, "weights_sha256": "b"}
    brightness_model(tmp_path / "m.int8.onnx", building_clusters=(3,), **copy)
    Session(tmp_path / "m.int8.onnx", "cpu")  # nothing beside it to compare with
    for same, facts in [
        (True, {"weights_sha256": "a", "building_clusters": (3,)}),
        (True, {"weights_sha256": "a", "building_clusters": (3,), "metrics": {"any": 1}}),
        (False, {"weights_sha256": "c", "building_clusters": (3,)}),
        (False, {"weights_sha256": "a", "building_clusters": (2, 3)}),
        (False, {"weights_sha256": "a", "building_clusters": (3,), "decision": "probability"}),
    ]:
        brightness_model(tmp_path / "m.onnx", **facts)
        if same:
            Session(tmp_path / "m.int8.onnx", "cpu")
        else:
            with pytest.raises(ModelInvalid, match=r"iic quantise .*m\.onnx --precision int8"):
                Session(tmp_path / "m.int8.onnx", "cpu")
            assert Session(tmp_path / "m.onnx", "cpu", precision="auto").precision == "fp32"


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", bytes(1000)])
def test_what_is_no_onnx_model_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelInvalid):
        Session(tmp_path / "m.onnx", "cpu")


def test_a_model_of_another_project_is_named(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "bare.onnx")
    helper.set_model_props(proto, metadata().to_properties())
    onnx.save(proto, tmp_path / "claims.onnx")
    with pytest.raises(ModelInvalid, match="no metadata"):
        Session(tmp_path / "bare.onnx", "cpu")
    with pytest.raises(ModelInvalid, match="building_clusters"):
        Session(tmp_path / "claims.onnx", "cpu")


def test_metadata_that_contradicts_the_graph_is_named(tmp_path: Path) -> None:
    brightness_model(tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    del proto.metadata_props[:]
    helper.set_model_props(proto, metadata(4).to_properties())
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelInvalid, match="takes 3 bands"):
        Session(tmp_path / "m.onnx", "cpu")


def test_auto_precision_takes_the_fastest_sibling_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"fp32": 2.0, "int8": 1.0, "fp16": 0.5}
    monkeypatch.setattr("qgis_iic.engine.session._Bound.trial", lambda bound: seconds[bound.precision])
    for name in ("m.onnx", "m.fp16.onnx"):
        brightness_model(tmp_path / name)
    assert Session(tmp_path / "m.onnx", "cpu", precision="auto").path == tmp_path / "m.onnx"  # fp16 is for GPUs
    brightness_model(tmp_path / "m.int8.onnx", precision={"kind": "int8", "of_weights_sha256": ""})
    session = Session(tmp_path / "m.onnx", "cpu", precision="auto")
    assert (session.path, session.precision) == (tmp_path / "m.int8.onnx", "int8")
    seconds["int8"] = 3.0
    assert Session(tmp_path / "m.onnx", "cpu", precision="auto").precision == "fp32"
    assert Session(tmp_path / "m.onnx", "cpu").precision == "fp32"
    assert Session(tmp_path / "m.int8.onnx", "cpu").precision == "int8"
    (tmp_path / "m.int8.onnx").write_bytes(b"damaged")
    assert Session(tmp_path / "m.onnx", "cpu", precision="auto").precision == "fp32"


def test_a_trial_runs_the_model(tmp_path: Path) -> None:
    random_model(tmp_path / "m.onnx")
    random_model(tmp_path / "m.int8.onnx")
    assert Session(tmp_path / "m.onnx", precision="auto").precision in ("fp32", "int8")


@pytest.mark.parametrize(
    ("free", "batch"),
    [(None, 8), (0, 1), (10 * 2400 * 600**2, 5), (80e9, 8)],
)
def test_the_batch_on_a_gpu_follows_its_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float | None, batch: int
) -> None:
    """CUDA is a CPU here."""
    brightness_model(tmp_path / "m.onnx", tile_size=600)
    bind = providers.bind
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [providers.NAMES["cuda"]])
    monkeypatch.setattr("qgis_iic.engine.session.bind", lambda path, provider: bind(path, "cpu"))
    monkeypatch.setattr("qgis_iic.engine.session.free_memory", lambda: free)
    assert Session(tmp_path / "m.onnx", "cuda").batch_size == batch
    assert Session(tmp_path / "m.onnx", "cuda").on_cpu is False


class _SmallDevice:
    """A session that holds `room` tiles at once, and says `refusal` of more."""

    def __init__(self, session: onnxruntime.InferenceSession, room: int, refusal: str) -> None:
        self._session = session
        self._room = room
        self._refusal = refusal
        self.batches: list[int] = []

    def io_binding(self) -> onnxruntime.IOBinding:
        return self._session.io_binding()

    def run_with_iobinding(self, binding: onnxruntime.IOBinding, options: onnxruntime.RunOptions) -> None:
        tiles = binding.get_outputs()[0].shape()[0]
        self.batches.append(tiles)
        if tiles > self._room:
            raise RuntimeError(self._refusal)
        self._session.run_with_iobinding(binding, options)


@pytest.mark.parametrize(
    "refusal",
    [
        "CUDA failure 2: out of memory ; GPU=0",
        "BFCArena::AllocateRawInternal(size_t, bool) Available memory of 0 is smaller than requested bytes of 27210240",
        "Non-zero status code returned while running Conv node. CUDNN failure 3000: CUDNN_STATUS_NOT_SUPPORTED ; GPU=0",
    ],
)
def test_a_batch_that_does_not_fit_is_halved_for_good(tmp_path: Path, refusal: str) -> None:
    brightness_model(tmp_path / "m.onnx")
    session = Session(tmp_path / "m.onnx", "cpu")
    tiles = np.random.default_rng(0).integers(0, 255, (7, 3, 4, 4)).astype(np.float32)
    whole = session.run(tiles)
    device = _SmallDevice(session._session, 2, refusal)
    session._session = device
    session.batch_size = 8
    np.testing.assert_array_equal(session.run(tiles), whole)
    assert device.batches[:3] == [7, 3, 1]
    assert session.batch_size <= 2
    device.batches.clear()
    session.run(tiles)
    assert max(device.batches) <= 2
    device._room = 0
    with pytest.raises(OutOfMemory, match="4 x 4"):
        session.run(tiles)


def test_a_run_under_way_can_be_cancelled(tmp_path: Path) -> None:
    random_model(tmp_path / "m.onnx")
    session = Session(tmp_path / "m.onnx", "cpu")
    tiles = np.zeros((1, 3, 4000, 4000), np.float32)
    threading.Timer(0.05, session.cancel).start()
    with pytest.raises(Cancelled):
        session.run(tiles)
    with pytest.raises(Cancelled):
        session.run(tiles[..., :8, :8])


def test_nothing_is_reported_to_the_makers_of_onnx_runtime(tmp_path: Path) -> None:
    brightness_model(tmp_path / "m.onnx")
    program = (
        "import sys, pathlib; from qgis_iic.engine.session import Session; Session(pathlib.Path(sys.argv[1]), 'cpu')"
    )
    home = tmp_path / "home"
    home.mkdir()
    # ONNX Runtime is silent by itself where it thinks that it is tested, and where the user said so before.
    silencing = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in silencing} | {"HOME": str(home)}
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program, tmp_path / "m.onnx"], env=environment, cwd=root, check=True)
    assert not list(home.rglob("*onnxruntime*"))
