"""FeatureExtractor: coordinates, masks, sizes, and agreement of the engines."""

import importlib
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from samfeat_core import EngineError, FeatureExtractor, WeightsError, engines
from samfeat_core.detection import ExtractionGraph
from samfeat_core.engines import candidates, ranges_file
from samfeat_core.errors import NoEngineError
from samfeat_core.models import build_network, model_spec
from samfeat_core.quantization import halve, write_ranges
from samfeat_core.weights import load_network
from training.calibrate import measure


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    network = build_network("samfeat-nano")
    # Batch statistics of real images, so that the random network answers with some contrast.
    network.train()
    with torch.no_grad():
        for seed in range(3):
            network(torch.from_numpy(scene(128, 160, seed))[None, None].float() / 255)
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def calibrated(weights):
    """The same weights with the ranges of their activations beside them."""
    network = load_network("samfeat-nano", weights).eval()
    photographs = [torch.from_numpy(scene(128, 160, seed))[None, None].float() / 255 for seed in range(3)]
    path = weights.parent / "calibrated" / weights.name
    path.parent.mkdir()
    shutil.copy(weights, path)
    write_ranges(ranges_file(path), path, measure(network, photographs))
    return path


def scene(height, width, seed=0):
    """A smooth random texture with rectangles: something to detect everywhere."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 255, (height // 8, width // 8), np.uint8), (width, height))
    for _ in range(60):
        x, y = rng.integers(0, width), rng.integers(0, height)
        cv2.rectangle(image, (int(x), int(y)), (int(x + 12), int(y + 9)), int(rng.integers(0, 255)), -1)
    return image


def make(weights, tmp_path, **options):
    options.setdefault("engine", "eager")
    options.setdefault("threshold", 0.0)
    return FeatureExtractor.from_pretrained("samfeat-nano", "cpu", weights=weights, cache_dir=tmp_path, **options)


def agreement(first, second):
    """Share of the first's keypoints that the second has within 0.1 px, and the worst cosine of those."""
    distance = np.linalg.norm(first.keypoints[:, None] - second.keypoints[None], axis=2)
    nearest, near = distance.argmin(1), distance.min(1) < 0.1
    cosines = (first.descriptors * second.descriptors[nearest]).sum(1)
    return near.mean(), cosines[near].min()


@pytest.mark.parametrize("path", ["/dev/zero", "/no/such/file"])
def test_weights_are_a_file_or_a_folder(path):
    with pytest.raises(WeightsError, match=f"{path}: no such weights file"):
        FeatureExtractor.from_pretrained("samfeat-nano", "cpu", weights=path)


def test_building_an_engine_forks_nothing_and_reports_to_nobody(weights, tmp_path):
    code = f"""
import sys
events = []
sys.addaudithook(lambda event, args: events.append(event) if event in ("os.fork", "socket.connect") else None)
from samfeat_core import FeatureExtractor
extractor = FeatureExtractor.from_pretrained(
    "samfeat-nano", "cpu", "openvino", weights={str(weights)!r}, cache_dir={str(tmp_path)!r})
extractor.prepare(64, 64)
import time; time.sleep(1)  # such reports leave from other threads
print(extractor.engine_name, sorted(set(events)))
"""
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "openvino []", done.stdout + done.stderr


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", pytest.param("compile", marks=pytest.mark.slow)])
def test_engines_agree_with_eager(weights, tmp_path, engine):
    image = scene(480, 640)
    extractor = make(weights, tmp_path, engine=engine)
    reference = make(weights, tmp_path)(image)
    features = extractor(image)
    assert extractor.engine_name == engine
    assert len(reference) == len(features) == 1024
    near, cosine = agreement(reference, features)
    assert near >= 0.99 and cosine >= 0.999


def test_bfloat16_finds_nearly_the_same_where_the_cpu_has_it(weights, tmp_path):
    lines = []
    image = scene(480, 640)
    reference = make(weights, tmp_path, engine="openvino")(image)
    half = make(weights, tmp_path, engine="openvino_bf16", log=lambda level, text: lines.append((level, text)))
    features = half(image)
    near, cosine = agreement(reference, features)
    if half.engine_name == "openvino_bf16":
        assert 0.7 < near < 1 and cosine > 0.98 and [level for level, _ in lines] == ["info"]
    else:  # a CPU without: said once, and the exact engine instead
        assert near == 1 and [level for level, _ in lines] == ["info", "error"] and "no bfloat16" in lines[1][1]


def test_a_cpu_without_bfloat16_falls_back_to_the_exact_engine(weights, tmp_path, monkeypatch):
    from samfeat_core.engines import openvino

    class Core:
        def get_property(self, *_):
            return ["FP32"]

    lines = []
    half = make(weights, tmp_path, engine="openvino_bf16", log=lambda level, text: lines.append((level, text)))
    core = openvino.core

    def told() -> bool:
        return any(level == "error" for level, _ in lines)

    monkeypatch.setattr(openvino, "core", lambda: core() if told() else Core())
    half.prepare(64, 64)
    assert half.engine_name == "openvino"
    assert [level for level, _ in lines] == ["info", "error"] and "no bfloat16 instructions" in lines[1][1]


def test_eight_bits_find_nearly_the_same(calibrated, tmp_path):
    lines = []
    image = scene(480, 640)
    reference = make(calibrated, tmp_path, engine="openvino")(image)
    quantized = make(calibrated, tmp_path, engine="openvino_int8", log=lambda level, text: lines.append((level, text)))
    near, cosine = agreement(reference, quantized(image))
    assert quantized.engine_name == "openvino_int8" and [level for level, _ in lines] == ["info"]
    assert 0.2 < near < 1 and cosine > 0.9

    operations = quantized._engine(640, 480).request.get_compiled_model().get_runtime_model().get_ops()
    precisions = [
        info["runtimePrecision"] for op in operations if (info := op.get_rt_info())["layerType"] == "Convolution"
    ]
    assert len(precisions) == 22 and set(precisions) <= {"i8", "u8"}


def test_weights_without_ranges_fall_back_to_the_exact_engine(weights, tmp_path):
    lines = []
    extractor = make(weights, tmp_path, engine="openvino_int8", log=lambda level, text: lines.append((level, text)))
    extractor.prepare(64, 64)
    assert extractor.engine_name == "openvino"
    assert [level for level, _ in lines] == ["info", "error"]
    assert "nano.int8.json: no such file; python -m training.calibrate makes it" in lines[1][1]


def test_ranges_of_other_weights_are_not_used(calibrated, tmp_path):
    lines = []
    other = tmp_path / "other.safetensors"
    save_file(build_network("samfeat-nano").state_dict(), other)
    shutil.copy(calibrated.with_suffix(".int8.json"), tmp_path / "other.int8.json")
    extractor = make(other, tmp_path, engine="openvino_int8", log=lambda level, text: lines.append((level, text)))
    extractor.prepare(64, 64)
    assert extractor.engine_name == "openvino" and "measured with other weights" in lines[1][1]


def test_the_candidates_are_exact_unless_named():
    assert candidates("auto", "cpu")[0][0] == "openvino"
    for name in ("openvino_bf16", "openvino_int8"):
        assert name not in candidates("auto", "cpu")[0] + candidates("eager", "cpu")[0]
        assert candidates(name, "cpu")[0][:2] == [name, "openvino"]


@pytest.mark.parametrize("engine", ["openvino", "openvino_int8", "onnxruntime"])
def test_a_kept_engine_starts_without_torch(calibrated, tmp_path, engine):
    make(calibrated, tmp_path, engine=engine).prepare(160, 128)
    code = f"""
import sys, numpy as np
from samfeat_core import FeatureExtractor
files = dict(weights={str(calibrated)!r}, cache_dir={str(tmp_path)!r})
x = FeatureExtractor.from_pretrained('samfeat-nano', 'cpu', '{engine}', **files)
x(np.random.default_rng(0).integers(0, 255, (128, 160), np.uint8))
assert 'torch' not in sys.modules, 'torch was imported'
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("engine", "file"), [("openvino", "engine.bin"), ("onnxruntime", "engine.onnx")])
def test_a_damaged_kept_engine_is_built_anew(weights, tmp_path, engine, file):
    image = scene(128, 160)
    reference = make(weights, tmp_path, engine=engine)(image)
    (kept,) = tmp_path.glob(f"*/{file}")
    kept.write_bytes(bytes(kept.stat().st_size))  # of the right length
    lines = []
    again = make(weights, tmp_path, engine=engine, log=lambda level, text: lines.append((level, text)))(image)
    np.testing.assert_array_equal(again.keypoints, reference.keypoints)
    assert [level for level, _ in lines][:2] == ["info", "warning"] and "is damaged, building it again" in lines[1][1]


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_every_start_gives_the_same_bits(weights, tmp_path, engine):
    image = scene(128, 160)
    first, second = (make(weights, tmp_path, engine=engine)(image) for _ in range(2))
    for name in ("keypoints", "scores", "descriptors"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_a_cache_that_cannot_be_written_costs_one_warning(weights, tmp_path):
    (tmp_path / "file").touch()
    lines = []
    extractor = make(weights, tmp_path / "file", engine="openvino", log=lambda level, text: lines.append((level, text)))
    assert len(extractor(scene(64, 64))) > 0 and extractor.engine_name == "openvino"
    assert [level for level, _ in lines] == ["info", "warning"] and "cannot be kept" in lines[1][1]


def test_changes_of_max_keypoints_below_a_power_of_two_build_nothing(weights, tmp_path):
    extractor, image = make(weights, tmp_path, engine="openvino", max_keypoints=100), scene(240, 320)
    for count in (100, 128, 20, 70):
        extractor.max_keypoints = count
        assert len(extractor(image)) == count
    assert len(list(tmp_path.iterdir())) == 1
    extractor.max_keypoints = 129
    assert len(extractor(image)) == 129
    assert len(list(tmp_path.iterdir())) == 2


def test_an_extractor_that_does_not_build_when_called(weights, tmp_path):
    extractor = make(weights, tmp_path, max_keypoints=100)
    extractor.builds_when_called = False
    with pytest.raises(NoEngineError, match="no engine for images of 160x128"):
        extractor(scene(128, 160))
    assert extractor.lacks_engine(160, 128)
    extractor.prepare(160, 128)
    assert not extractor.lacks_engine(160, 128) and extractor.lacks_engine(320, 240)
    extractor.max_keypoints = 200
    assert extractor.lacks_engine(160, 128)
    assert len(extractor(scene(128, 160))) == 128  # what the engine at hand finds
    extractor.prepare(160, 128)
    assert len(extractor(scene(128, 160))) == 200


def test_an_engine_is_built_by_a_process_of_its_own(weights, tmp_path):
    extractor = make(weights, tmp_path, engine="openvino", max_keypoints=100, resize=160)
    command = extractor.build_command(640, 480)
    subprocess.run(command, check=True, capture_output=True)
    (kept,) = tmp_path.iterdir()
    assert extractor.build_command(640, 480) is None
    assert make(weights, tmp_path, engine="eager").build_command(640, 480) is None
    extractor.prepare(640, 480)
    assert list(tmp_path.iterdir()) == [kept]
    done = subprocess.run([*command, "--weights=/no/such"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "/no/such: no such weights file\n")


def test_rows_that_are_no_keypoints_are_left_out_wherever_they_stand(weights, tmp_path, monkeypatch):
    """A plateau loses its score after the rows were sorted, so zeros may stand before keypoints."""
    extractor = make(weights, tmp_path, max_keypoints=3)
    scores = np.float32([0.9, 0, 0.8, 0.7, 0.6])
    rows = np.arange(5, dtype=np.float32)
    answer = np.stack((rows, rows), 1), scores, np.eye(5, 64, dtype=np.float32), np.ones(5, np.float32)
    monkeypatch.setattr(extractor, "_engine", lambda width, height: lambda image, mask: answer)
    features = extractor(scene(64, 96))
    np.testing.assert_array_equal(features.scores, scores[[0, 2, 3]])
    np.testing.assert_array_equal(features.keypoints[:, 0], [0, 2, 3])


@pytest.mark.parametrize("size", [(480, 640), (123, 217), (33, 50), (376, 1241)])
def test_any_size_keeps_keypoints_inside_the_image(weights, tmp_path, size):
    features = make(weights, tmp_path)(scene(*size))
    height, width = size
    assert features.image_size == (width, height)
    assert len(features) > 0
    assert (features.keypoints >= 4 - 2.01).all()
    assert (features.keypoints <= np.array([width - 5, height - 5]) + 2.01).all()
    assert (np.diff(features.scores) <= 0).all()
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, rtol=1e-5)


def test_without_a_border_keypoints_stay_inside_all_the_same(weights, tmp_path):
    features = make(weights, tmp_path, border=0, nms_radius=1)(scene(64, 96))
    assert (features.keypoints >= 0).all() and (features.keypoints <= [95, 63]).all()


def test_resize_maps_keypoints_back_by_half_pixel_centres(weights, tmp_path):
    image = scene(256, 320)
    doubled = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    native = make(weights, tmp_path)(image)
    reduced = make(weights, tmp_path, resize=320)(doubled)  # INTER_AREA halves it to the same pixels
    np.testing.assert_allclose((reduced.keypoints + 0.5) / 2 - 0.5, native.keypoints, atol=1e-3)


def test_colour_is_reduced_to_grey_for_a_grey_network(weights, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (128, 160, 3), np.uint8)
    extractor = make(weights, tmp_path)
    np.testing.assert_array_equal(
        extractor(image).keypoints, extractor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)).keypoints
    )


def test_mask_keeps_keypoints_out(weights, tmp_path):
    mask = np.zeros((200, 300), np.uint8)
    mask[:, 150:] = 255
    features = make(weights, tmp_path)(scene(200, 300), mask)
    assert len(features) > 0 and (features.keypoints[:, 0] > 150 - 2.01).all()


@pytest.mark.parametrize("value", [0, 90, 255])
def test_a_featureless_image_has_no_features(weights, tmp_path, value):
    features = make(weights, tmp_path)(np.full((240, 320), value, np.uint8))
    assert len(features) == 0 and features.descriptors.shape == (0, 64)


def test_max_keypoints_and_threshold_change_while_running(weights, tmp_path):
    extractor, image = make(weights, tmp_path, max_keypoints=100), scene(240, 320)
    assert len(extractor(image)) == 100
    extractor.max_keypoints = 50
    assert len(extractor(image)) == 50
    extractor.max_keypoints = 150
    features = extractor(image)
    assert len(features) == 150
    extractor.threshold = float(features.scores[70])
    assert len(extractor(image)) in (70, 71)
    extractor.threshold = 1.0
    assert len(extractor(image)) == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "sift"}, "unknown model 'sift'"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"engine": "onnx"}, "engine is 'onnx'"),
        ({"device": "cpu", "engine": "tensorrt"}, "does not run on cpu"),
        ({"max_keypoints": 0}, "max_keypoints is 0"),
        ({"max_keypoints": 512.0}, "max_keypoints is 512.0, expected a whole number"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"nms_radius": 0}, "nms_radius is 0"),
        ({"border": -1}, "border is -1"),
        ({"resize": 8}, "resize is 8"),
    ],
)
def test_impossible_arguments_are_named(weights, options, text):
    with pytest.raises(ValueError, match=text):
        FeatureExtractor.from_pretrained(**{"weights": weights, "device": "cpu", **options})


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4), np.float32), ((4, 4, 4), np.uint8), ((0, 4), np.uint8)])
def test_impossible_images_are_refused(weights, tmp_path, shape, dtype):
    with pytest.raises(ValueError, match="expected \\(H, W\\) or \\(H, W, 3\\) uint8"):
        make(weights, tmp_path)(np.zeros(shape, dtype))


def test_no_image_is_said(weights, tmp_path):
    with pytest.raises(ValueError, match="image is NoneType, expected an array"):
        make(weights, tmp_path)(cv2.imread(str(tmp_path / "none.png")))


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        FeatureExtractor.from_pretrained("samfeat-nano", "cpu", weights=tmp_path / "none.safetensors")


def test_cuda_where_there_is_none_is_an_error(weights):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(EngineError, match="device cuda cannot be used"):
        FeatureExtractor.from_pretrained("samfeat-nano", "cuda", weights=weights)


def test_auto_says_what_it_chose_and_why(weights, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    lines = []
    make(weights, tmp_path, engine="auto", log=lambda level, text: lines.append((level, text)))
    FeatureExtractor.from_pretrained(weights=weights, log=lambda level, text: lines.append((level, text)))
    # these weights are random numbers: nobody has measured how accurate the faster engines are with them
    assert lines[0][0] == "info" and lines[0][1].startswith("model samfeat-nano, engine openvino, device cpu (")
    assert "openvino_int8: " in lines[0][1]
    assert lines[1][0] == "info" and "device cpu (no CUDA" in lines[1][1]


def test_an_engine_that_fails_falls_back_with_an_error(weights, tmp_path, monkeypatch):
    import samfeat_core.engines.openvino as module

    def broken(job, network):
        raise RuntimeError("conversion broke")

    monkeypatch.setattr(module, "convert", broken)
    lines = []
    extractor = make(weights, tmp_path, engine="openvino", log=lambda level, text: lines.append((level, text)))
    assert len(extractor(scene(64, 64))) > 0
    assert extractor.engine_name == "onnxruntime"
    assert [(level, "conversion broke" in text) for level, text in lines] == [
        ("info", False),
        ("error", True),
        ("info", False),
    ]
    assert "runs samfeat-nano 64x64 on CPUExecutionProvider" in lines[2][1]


def test_a_library_that_cannot_be_loaded_falls_back_with_an_error(weights, tmp_path, monkeypatch):
    def broken(name):
        if name.endswith(".openvino"):
            raise OSError("libopenvino.so: cannot open shared object file")
        return importlib.import_module(name)

    monkeypatch.setattr(engines, "import_module", broken)
    lines = []
    extractor = make(weights, tmp_path, engine="openvino", log=lambda level, text: lines.append((level, text)))
    assert len(extractor(scene(64, 64))) > 0
    assert extractor.engine_name == "onnxruntime"
    assert [(level, "openvino cannot be loaded (OSError: libopenvino" in text) for level, text in lines] == [
        ("info", False),
        ("error", True),
        ("info", False),
    ]


def test_nothing_to_run_on_is_said(weights, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match="nothing runs a network on cpu: openvino: openvino is not installed"):
        FeatureExtractor.from_pretrained(weights=weights, device="cpu")


def test_an_engine_of_the_cpu_is_no_question_of_cuda(weights, monkeypatch):
    monkeypatch.setattr(engines, "cuda_problem", lambda: None)
    extractor = FeatureExtractor.from_pretrained(weights=weights, engine="openvino")
    assert (extractor.device, extractor.engine_name) == ("cpu", "openvino")
    with pytest.raises(ValueError, match="engine openvino does not run on cuda"):
        FeatureExtractor.from_pretrained(weights=weights, device="cuda", engine="openvino")


def test_the_key_of_an_engine_knows_weights_in_a_folder(tmp_path):
    (tmp_path / "backbone.pth").write_bytes(b"one")
    job = engines.Job(model_spec("scfeat"), tmp_path, 64, 64, 10, 4, "cpu", tmp_path)
    key = job.key()
    assert key == job.key() != job.key("another version")
    (tmp_path / "backbone.pth").write_bytes(b"two")
    assert key != job.key()


@pytest.mark.slow
def test_the_graph_in_half_precision_can_be_exported_and_answers_nearly_the_same(weights):
    network = load_network("samfeat-nano", weights).eval().requires_grad_(False)
    inputs = torch.from_numpy(scene(96, 128))[None, None], torch.ones(1, 1, 96, 128, dtype=torch.uint8)
    with torch.inference_mode():
        full = ExtractionGraph(network, 100, 2)(*inputs)
        half = ExtractionGraph(halve(network), 100, 2)
        exported = torch.export.export(half, inputs).module()
        answers = half(*inputs), exported(*inputs)
    for keypoints, _, descriptors, _ in answers:
        assert keypoints.dtype == descriptors.dtype == torch.float32
        distance = torch.cdist(full[0], keypoints)
        met = distance.amin(1) < 0.1
        assert met.float().mean() > 0.9
        assert (full[2] * descriptors[distance.argmin(1)]).sum(1)[met].min() > 0.99


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "auto:1"])
def test_devices_that_are_none(device):
    with pytest.raises(ValueError, match=f"device is '{device}', expected one of auto, cuda, cpu, cuda:N"):
        engines.check_choice(device, "auto")


def test_one_gpu_of_several(monkeypatch):
    monkeypatch.setattr(engines, "cuda_devices", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engines.choose_device("cuda:1") == ("cuda:1", "as asked")
    assert engines.choose_device("auto") == ("cuda", "CUDA device found")
    assert engines.candidates("compile", "cuda:1")[0] == ["compile", "tensorrt", "eager", "onnxruntime"]
    with pytest.raises(EngineError, match="device cuda:2 cannot be used: there are 2 CUDA devices"):
        engines.choose_device("cuda:2")


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["eager", "compile", "tensorrt", "onnxruntime"])
def test_cuda_agrees_with_the_cpu(weights, tmp_path, engine):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA")
    pytest.importorskip(engines.LIBRARY[engine])
    image = scene(480, 640)
    options = {"weights": weights, "cache_dir": tmp_path, "threshold": 0.0}
    fast = FeatureExtractor.from_pretrained("samfeat-nano", "cuda", engine, **options)
    near, cosine = agreement(make(weights, tmp_path)(image), fast(image))
    assert fast.engine_name == engine
    assert near >= 0.99 and cosine >= 0.999
