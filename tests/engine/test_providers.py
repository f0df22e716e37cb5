"""What networks can run on, and the reason where they can't."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, get_args

import onnxruntime
import pytest
from click.testing import CliRunner
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from qgis_iic.cli.main import main
from qgis_iic.engine import providers
from qgis_iic.engine.session import Session
from qgis_iic.protocol.errors import ModelInvalid, ProviderUnavailable
from qgis_iic.protocol.job import Provider
from tests.onnx_models import brightness_model


def offer(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [providers.NAMES[name] for name in names])


def test_every_provider_of_a_job_has_a_name() -> None:
    assert set(providers.NAMES) == set(get_args(Provider)) - {"auto"}


@pytest.mark.parametrize("provider", [name for name in providers.NAMES if name != "cpu"])
def test_what_is_not_offered_is_an_error_that_says_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: Provider
) -> None:
    brightness_model(tmp_path / "m.onnx")
    offer(monkeypatch, "cpu")
    with pytest.raises(ProviderUnavailable, match=rf"does not have {providers.NAMES[provider]} .* package onnxruntime"):
        Session(tmp_path / "m.onnx", provider)


def test_auto_tries_gpus_first_and_never_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "cpu", "tensorrt", "directml", "cuda")
    assert providers.candidates("auto") == ["cuda", "directml", "cpu"]
    assert providers.candidates("tensorrt") == ["tensorrt"]


@pytest.mark.skipif(not providers.survey()["cuda"], reason="CUDA binds here")
def test_what_is_offered_and_does_not_bind_is_no_silent_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For real where onnxruntime-gpu is installed without a GPU; else ONNX Runtime is only said to have CUDA."""
    brightness_model(tmp_path / "m.onnx")
    offer(monkeypatch, "cuda", "cpu")
    with pytest.raises(ProviderUnavailable, match=r"does not bind here: .+"):
        Session(tmp_path / "m.onnx", "cuda")
    assert Session(tmp_path / "m.onnx", "auto").provider == "CPUExecutionProvider"


def test_the_reason_is_what_onnx_runtime_says_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Unbound:
        """As ONNX Runtime does it: says so, and goes on with the CPU."""

        def __init__(self, *_: object, **__: object) -> None:
            os.write(
                2,
                b"\x1b[0;93m2026-01-01 [W:onnxruntime:Default, a.cc:1 Warn] never mind\x1b[m\n"
                b"\x1b[1;31m2026 [E:onnxruntime:Default, provider_bridge_ort.cc:2195 TryGetProviderInfo_CUDA] "
                b"/src/provider_bridge_ort.cc:1778 Provider& Get() [ONNXRuntimeError] : 1 : FAIL : "
                b"Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: missing\x1b[m",
            )

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Unbound)
    with pytest.raises(ProviderUnavailable) as raised:
        providers.bind(b"", "cuda")
    reason = (
        "bind here: Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: missing. "
    )
    assert reason in raised.value.message
    assert "TryGetProviderInfo" not in raised.value.message
    assert "libcublas" not in capfd.readouterr().err
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "afterwards"


def test_a_provider_that_binds_and_does_not_run_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brightness_model(tmp_path / "m.onnx")
    offer(monkeypatch, "cuda", "cpu")
    bind = providers.bind
    monkeypatch.setattr("qgis_iic.engine.session.bind", lambda path, provider: bind(path, "cpu"))

    class Failing:
        def run(self, *_: object) -> None:
            raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(
        "qgis_iic.engine.session.run",
        lambda session, provider, feed: providers.run(Failing() if provider == "cuda" else session, provider, feed),  # type: ignore[arg-type]
    )
    assert Session(tmp_path / "m.onnx", "auto").provider == "CPUExecutionProvider"
    with pytest.raises(ProviderUnavailable, match="no kernel image"):
        Session(tmp_path / "m.onnx", "cuda")


def test_auto_takes_the_fastest_that_binds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brightness_model(tmp_path / "m.onnx")
    offer(monkeypatch, "cuda", "openvino", "cpu")
    bind = providers.bind
    seconds = {"cuda": 2.0, "openvino": 1.0, "cpu": 3.0}
    monkeypatch.setattr("qgis_iic.engine.session.bind", lambda path, provider: bind(path, "cpu"))
    monkeypatch.setattr("qgis_iic.engine.session._Bound.trial", lambda bound: seconds[bound.provider])
    assert Session(tmp_path / "m.onnx", "auto").provider == "OpenVINOExecutionProvider"


def test_openvino_takes_a_gpu_or_else_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brightness_model(tmp_path / "m.onnx")
    offer(monkeypatch, "openvino", "cpu")
    load = onnxruntime.InferenceSession
    devices = {"CPU"}
    broken: set[str] = set()
    asked = []

    class OnOpenVINO:
        def __init__(self, session: onnxruntime.InferenceSession, device: str) -> None:
            self._session = session
            self._device = device

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

        def get_providers(self) -> list[str]:
            return ["OpenVINOExecutionProvider", "CPUExecutionProvider"]

        def run(self, *arguments: Any) -> Any:
            if self._device in broken:
                raise RuntimeError("CL_OUT_OF_RESOURCES")
            return self._session.run(*arguments)

    def begin(model: object, options: object, providers: list[tuple[str, dict[str, str]]], **facts: object) -> object:
        """As ONNX Runtime does it: goes on with the CPU where OpenVINO has no such device."""
        session = load(model, options, **facts)
        asked.append(providers[0][1]["device_type"])
        return OnOpenVINO(session, asked[-1]) if asked[-1] in devices else session

    monkeypatch.setattr(onnxruntime, "InferenceSession", begin)
    session = Session(tmp_path / "m.onnx", "openvino")
    assert asked == ["GPU", "CPU"]
    assert session.provider == "OpenVINOExecutionProvider"
    assert (session.on_cpu, session.batch_size) == (True, 1)
    devices.add("GPU")
    Session(tmp_path / "m.onnx", "openvino")
    assert asked[2:] == ["GPU", "GPU"]  # the second one with the model
    broken.add("GPU")
    Session(tmp_path / "m.onnx", "openvino")
    assert asked[4:] == ["GPU", "CPU"]
    devices.clear()
    with pytest.raises(ProviderUnavailable, match="OpenVINOExecutionProvider, but it does not bind here"):
        Session(tmp_path / "m.onnx", "openvino")


def test_a_provider_that_fails_while_it_loads_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brightness_model(tmp_path / "m.onnx")
    offer(monkeypatch, "cuda", "cpu")
    load = onnxruntime.InferenceSession

    def full(model: object, options: object, providers: list[tuple[str, object]], **facts: object) -> object:
        if providers[0][0] == "CUDAExecutionProvider":
            raise runtime_errors.RuntimeException("bfc_arena.cc: Failed to allocate memory")
        return load(model, options, providers=providers, **facts)

    monkeypatch.setattr(onnxruntime, "InferenceSession", full)
    assert Session(tmp_path / "m.onnx", "auto").provider == "CPUExecutionProvider"
    with pytest.raises(ProviderUnavailable, match="Failed to allocate memory"):
        Session(tmp_path / "m.onnx", "cuda")
    assert "Failed to allocate memory" in providers.survey()["cuda"]


@pytest.mark.parametrize(("status", "free"), [(0, 6_000_000_000), (201, None)])  # 201: no context
def test_the_driver_says_what_is_free(monkeypatch: pytest.MonkeyPatch, status: int, free: int | None) -> None:
    class Driver:
        def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
            free._obj.value, total._obj.value = 6_000_000_000, 8_000_000_000
            return status

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert providers.free_memory() == free


def test_without_a_driver_nobody_knows_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert providers.free_memory() is None


def test_a_damaged_model_is_no_fault_of_the_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.onnx").write_bytes(b"hello")
    with pytest.raises(ModelInvalid):
        Session(tmp_path / "m.onnx", "auto")


def test_info_shows_what_is_there_and_why_the_rest_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "cpu")
    result = CliRunner().invoke(main, ["info", "--devices"])
    assert result.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in result.output.splitlines())
    assert lines.keys() == providers.NAMES.keys()
    assert lines["cpu"] == "usable"
    assert "onnxruntime-gpu" in lines["cuda"]


@pytest.mark.parametrize("arguments", [[], ["m.onnx", "--devices"]])
def test_info_is_of_a_model_or_of_the_devices(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, ["info", *arguments]).exit_code == 2
