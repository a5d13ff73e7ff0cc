"""The sam teacher with the segment-anything package itself, on small networks built from its modules."""

import io
import sys
import types
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from tqdm import tqdm
from typer.testing import CliRunner

segment_anything = pytest.importorskip("segment_anything")

from segment_anything import SamAutomaticMaskGenerator, SamPredictor  # noqa: E402
from segment_anything.modeling import (  # noqa: E402
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.utils.amg import mask_to_rle_pytorch  # noqa: E402

from samfeat_core.errors import UsageError  # noqa: E402
from training.data.photo_store import StoreError  # noqa: E402
from training.data.teacher_store import TeacherStore, borders  # noqa: E402
from training.samfeat.teacher.sam import MaskOptions, SamTeacher, load_sam, merge_masks  # noqa: E402
from training.teach import app  # noqa: E402

# Random masks pass no quality threshold: 0 turns these off. Four prompts.
OPTIONS = MaskOptions(points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0)


def small_sam(side=256, width=32):
    """A SAM of one block per part, embedding side / 16 squared, random weights."""
    torch.manual_seed(0)
    grid = side // 16
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    encoder = ImageEncoderViT(
        side,
        depth=1,
        embed_dim=width,
        mlp_ratio=2,
        norm_layer=norm,
        num_heads=2,
        out_chans=256,
        use_rel_pos=True,
        window_size=8,
    )
    prompts = PromptEncoder(256, (grid, grid), (side, side), mask_in_chans=4)
    transformer = TwoWayTransformer(depth=1, embedding_dim=256, num_heads=4, mlp_dim=64)
    decoder = MaskDecoder(transformer_dim=256, transformer=transformer, iou_head_depth=2, iou_head_hidden_dim=32)
    return Sam(encoder, prompts, decoder).eval()


@pytest.fixture(scope="module")
def photograph():
    return np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)


def test_entry_is_what_the_package_says(photograph):
    sam = small_sam()
    encoded = []
    sam.image_encoder.register_forward_pre_hook(lambda module, inputs: encoded.append(inputs[0].shape))
    entry = SamTeacher(sam, "sam small", OPTIONS)(photograph)
    assert len(encoded) == 1  # the photograph goes through the encoder once
    assert entry.teacher == "sam small" and entry.image_size == (100, 60)

    predictor = SamPredictor(sam)
    predictor.set_image(photograph[..., ::-1])
    expected = predictor.get_image_embedding()[0].half().numpy()
    assert entry.embedding.shape == (256, 16, 16)
    np.testing.assert_array_equal(entry.embedding, expected)

    generator = SamAutomaticMaskGenerator(sam, 2, pred_iou_thresh=0, stability_score_thresh=0)
    masks = [mask["segmentation"] for mask in generator.generate(np.ascontiguousarray(photograph[..., ::-1]))]
    assert masks
    np.testing.assert_array_equal(entry.groups[0] > 0, np.any(masks, 0))
    np.testing.assert_array_equal(entry.edges[0], np.any([borders(mask) for mask in masks], 0))


def test_half_precision_says_nearly_the_same(photograph):
    whole = SamTeacher(small_sam(), options=OPTIONS)(photograph)
    half = SamTeacher(small_sam(), options=OPTIONS, precision="bf16")(photograph)
    a, b = (entry.embedding.astype(np.float64).reshape(256, -1) for entry in (whole, half))
    assert np.abs(a - b).max() > 1e-4
    assert ((a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)).min() > 0.999
    assert ((whole.groups > 0) == (half.groups > 0)).mean() > 0.95


def test_a_bar_counts_the_batches_of_prompts(photograph, monkeypatch):
    """Nine prompts and, in each of four crops, nine more; at most four at a time."""
    shown = lambda items, title, unit, shown, **options: tqdm(items, title, file=io.StringIO(), **options)  # noqa: E731
    monkeypatch.setattr("training.samfeat.teacher.sam.progress", shown)
    teacher = SamTeacher(small_sam(), options=MaskOptions(3, 0, 0, crop_n_layers=1, points_per_batch=4))
    assert teacher._batches == 3 + 4 * 3
    teacher(photograph)
    assert teacher._bar.n == teacher._bar.total == 15


def test_a_package_of_the_same_interface(registered, tmp_path, photograph, monkeypatch):
    """mobile_sam is segment_anything with another encoder; its own modules are used."""
    names = ("", ".utils", ".utils.amg")
    for name in names:
        monkeypatch.setitem(sys.modules, f"mobile_sam{name}", sys.modules[f"segment_anything{name}"])
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_t", partial(small_sam, 1024, 8))
    sam = load_sam("vit_t", registered, "cpu", "mobile_sam")
    entry = SamTeacher(sam, "mobile_sam vit_t", OPTIONS, "mobile_sam")(photograph)
    expected = SamTeacher(load_sam("vit_t", registered, "cpu"), options=OPTIONS)(photograph)
    np.testing.assert_array_equal(entry.groups, expected.groups)
    with pytest.raises(UsageError, match="package 'nano_sam' cannot be imported"):
        load_sam("vit_t", registered, "cpu", "nano_sam")


class Sam2(torch.nn.Module):
    """What the teacher sees of a model of sam2: the mean colour of each of 64 x 64 cells of what it is given."""

    def __init__(self):
        super().__init__()
        self.image_encoder, self.sam_mask_decoder = Colours(), torch.nn.Identity()


class Colours(torch.nn.Module):
    def forward(self, image):
        cells = torch.nn.functional.interpolate(image, (64, 64), mode="area")
        return {"vision_features": cells.repeat(1, 86, 1, 1)[:, :256], "backbone_fpn": []}


class Sam2Generator:
    """Two masks, the second one in a corner of the first."""

    def __init__(self, model, output_mode, points_per_side, **options):
        self.model, self.point_grids = model, [np.zeros((points_per_side**2, 2))]

    def generate(self, image):
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        self.model.image_encoder(torch.nn.functional.interpolate(pixels, (1024, 1024), mode="nearest"))
        self.model.sam_mask_decoder(pixels)
        masks = [np.zeros(image.shape[:2], bool) for _ in range(2)]
        masks[0][:, : image.shape[1] // 2], masks[1][:10, :10] = True, True
        rles = mask_to_rle_pytorch(torch.from_numpy(np.stack(masks)))
        return [{"segmentation": rle, "area": int(mask.sum())} for rle, mask in zip(rles, masks, strict=True)]


def test_sam2_stretches_photographs_and_the_store_does_not(monkeypatch, tmp_path):
    def build(config, checkpoint, device):
        if config != "configs/small.yaml":
            raise RuntimeError
        return Sam2()

    modules = {
        "sam2": {},
        "sam2.build_sam": {"build_sam2": build},
        "sam2.automatic_mask_generator": {"SAM2AutomaticMaskGenerator": Sam2Generator},
        "sam2.utils": {},
        "sam2.utils.amg": {"rle_to_mask": segment_anything.utils.amg.rle_to_mask},
    }
    for name, parts in modules.items():
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**parts))
    (tmp_path / "sam2.pt").write_bytes(b"weights")
    sam = load_sam("configs/small.yaml", tmp_path / "sam2.pt", "cpu", "sam2")
    image = np.zeros((128, 256, 3), np.uint8)
    image[..., 2] = np.arange(256)  # red grows along x
    entry = SamTeacher(sam, "sam2 small", OPTIONS, "sam2")(image)
    assert entry.groups.shape == (1, 128, 256) and set(entry.groups[0, :10, :10].ravel()) == {2}
    red = entry.embedding[0].astype(float) * 255
    # a cell of the padded square is 4 pixels; the photograph covers the upper half of it
    np.testing.assert_allclose(red[:32], np.tile(np.arange(64) * 4 + 1.5, (32, 1)), atol=1)
    assert not red[32:].any()
    with pytest.raises(
        StoreError, match=r"sam2.pt: not a checkpoint of sam2's configs/large.yaml .*tensors are missing"
    ):
        load_sam("configs/large.yaml", tmp_path / "sam2.pt", "cpu", "sam2")


def test_no_mask_is_no_group(photograph):
    options = MaskOptions(points_per_side=2, pred_iou_thresh=1, stability_score_thresh=1)
    entry = SamTeacher(small_sam(), options=options)(photograph)
    assert not entry.groups.any() and not entry.edges.any() and entry.embedding is not None


def test_with_crops_the_embedding_is_the_whole_photographs(photograph):
    sam = small_sam()
    whole = SamTeacher(sam, options=OPTIONS)(photograph)
    cropped = SamTeacher(sam, options=MaskOptions(2, 0, 0, crop_n_layers=1))(photograph)
    np.testing.assert_array_equal(cropped.embedding, whole.embedding)


def test_smaller_mask_on_top():
    car = np.zeros((8, 10), bool)
    car[2:7, 1:9] = True
    wheel = np.zeros((8, 10), bool)
    wheel[5:8, 2:4] = True
    hidden = wheel.copy()
    hidden[5] = False
    groups, edges = merge_masks([car, hidden, wheel], (8, 10))
    assert groups[0, 0] == 0 and groups[3, 5] == 1 and groups[6, 2] == 2 and groups.max() == 2
    np.testing.assert_array_equal(edges, borders(car) | borders(wheel) | borders(hidden))


def test_the_embedding_lies_over_the_square_around_the_photograph():
    """Darkening one patch of the photograph changes the embedding most where the store's documentation says it is."""
    sam = small_sam()
    for block in sam.image_encoder.blocks:  # nothing but the patch embedding and the local neck
        block.forward = lambda tokens: tokens
    image = np.full((120, 200, 3), 200, np.uint8)
    dark = image.copy()
    dark[88:100, 150:162] = 0
    embeddings = [SamTeacher(sam, options=OPTIONS)(picture).embedding.astype(float) for picture in (image, dark)]
    change = np.abs(embeddings[1] - embeddings[0]).sum(0)
    y, x = np.unravel_index(change.argmax(), change.shape)
    grid = change.shape[0]
    assert abs(x - (156 * grid / 200 - 0.5)) <= 1 and abs(y - (94 * grid / 200 - 0.5)) <= 1


@pytest.fixture
def registered(monkeypatch, tmp_path):
    """The package's registry builds the small network as vit_b; its checkpoint as a file."""
    # 1024 pixels, SAM's real size: the embedding is 64 x 64.
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", partial(small_sam, 1024, 8))
    torch.save(small_sam(1024, 8).state_dict(), tmp_path / "sam_vit_b_small.pth")
    return tmp_path / "sam_vit_b_small.pth"


def test_command(registered, tmp_path, photograph):
    photos = tmp_path / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "good.png"), photograph)
    (photos / "bad.jpg").write_bytes(b"nothing")
    command = ["sam", photos, tmp_path / "store", "--checkpoint", registered, "--model", "vit_b", "--device", "cpu"]
    command += ["--points-per-side", 1, "--pred-iou", 0, "--stability", 0]
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    assert "1 photographs written" in result.output and "bad.jpg: cannot be decoded" in result.output
    entry = TeacherStore(tmp_path / "store").entry("good")
    assert entry.embedding.shape == (256, 64, 64) and entry.embedding.dtype == np.float16
    assert entry.groups.shape == (1, 60, 100) and entry.teacher == "sam vit_b"
    again = CliRunner().invoke(app, [str(part) for part in command])
    assert "0 photographs written, 1 were there" in again.output
    half = CliRunner().invoke(app, [str(part) for part in [*command, "--precision", "bf16"]])
    assert half.exit_code == 1 and "precision" in half.output
    wrong = CliRunner().invoke(app, [str(part) for part in [*command, "--precision", "int8"]])
    assert wrong.exit_code == 2 and "--precision is 'int8', expected one of fp32, fp16, bf16" in wrong.output
    other = CliRunner().invoke(app, [str(part) for part in [*command[:-1], 0.5]])
    assert other.exit_code == 1 and "stability_score_thresh = 0.0 (now 0.5)" in other.output


def test_wrong_checkpoints_are_named(registered, tmp_path):
    assert isinstance(load_sam("vit_b", registered, "cpu"), Sam)
    with pytest.raises(UsageError, match="unknown SAM model 'vit_x'"):
        load_sam("vit_x", registered, "cpu")
    with pytest.raises(StoreError, match="missing.pth: no such SAM checkpoint"):
        load_sam("vit_b", tmp_path / "missing.pth", "cpu")
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(registered.read_bytes()[:5000])
    with pytest.raises(StoreError, match="truncated.pth: damaged, or not"):
        load_sam("vit_b", truncated, "cpu")
    torch.save(small_sam(256, 8).state_dict(), tmp_path / "other.pth")
    with pytest.raises(StoreError, match=r"other.pth: not a SAM vit_b checkpoint: \d+ tensors .* image_encoder"):
        load_sam("vit_b", tmp_path / "other.pth", "cpu")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(StoreError, match="list.pth: not a SAM vit_b checkpoint"):
        load_sam("vit_b", tmp_path / "list.pth", "cpu")


def test_command_without_checkpoint(tmp_path, photograph):
    cv2.imwrite(str(tmp_path / "good.png"), photograph)
    command = ["sam", str(tmp_path), str(tmp_path / "store"), "--checkpoint", str(tmp_path / "no.pth")]
    result = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert result.exit_code == 1 and "no.pth: no such SAM checkpoint" in result.output
    result = CliRunner().invoke(app, [*command, "--device", "abacus"])
    assert result.exit_code == 2 and "device is 'abacus', expected one of auto, cuda, cpu" in result.output
