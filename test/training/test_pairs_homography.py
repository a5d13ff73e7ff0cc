"""Views of photographs: the correspondence is where the pixels went, teacher maps go with the picture."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from training.data.feature_store import FeatureStore, ReferenceFeatures
from training.data.feature_store import pack as features_entry
from training.data.geometry import sampling_grid
from training.data.homography_pairs import HomographyConfig, HomographyPairs, project
from training.data.label_store import KeypointLabels, LabelStore
from training.data.label_store import pack as labels_entry
from training.data.pairs import concatenate, pixel_grid
from training.data.photo_store import StoreError, content_hash
from training.data.photometric import Photometric, blur, grey, jpeg
from training.data.photos import Photo, PhotoLoader, PhotoSource, ReferenceOctave, load_photos, pyramid
from training.data.teacher_store import TeacherEntry, TeacherStore
from training.samfeat.data import identity


def smooth_photo(width=320, height=240, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 24, width // 24, channels), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    return Photo("smooth", pyramid(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))))


def pairs_of(photo, size=(96, 64), **config):
    return HomographyPairs(PhotoSource([photo]), size, "cpu", HomographyConfig(**config))


@pytest.mark.parametrize("channels", [1, 3])
def test_warps_lead_to_the_same_picture(channels):
    torch.manual_seed(0)
    batch = pairs_of(smooth_photo(channels=channels), scale=1.8).sample(8)  # wider zooms cost sharpness
    there, back = (batch.image0, batch.image1, batch.warp01), (batch.image1, batch.image0, batch.warp10)
    for image0, image1, warp in (there, back):
        for one, other, to in zip(image0, image1, warp):
            seen = torch.isfinite(to).all(-1).numpy()
            assert seen.mean() > 0.1
            moved = cv2.remap(other[0].numpy(), to.nan_to_num(0).numpy(), None, cv2.INTER_LINEAR)
            assert np.abs(moved - one[0].numpy())[seen].mean() < 0.01


def test_every_level_shows_the_same_place():
    ramp = torch.arange(255, dtype=torch.uint8).expand(1, 199, 255)  # odd sides; a grey value is where it is
    pairs = pairs_of(Photo("ramp", pyramid(ramp)), min_crop=1.0, rotation_deg=0.0, perspective=0.0)
    at = torch.stack(torch.meshgrid(torch.arange(96.0), torch.arange(64.0), indexing="xy"), -1)
    for step in (1.0, 1.7, 2.5):
        view = pairs._render(pairs.photos.photos, at[None, None] * step + 4, torch.tensor([[step]]))[0, 0, 0] * 255
        inside = at[..., 0] * step < 240
        assert (view - at[..., 0] * step - 4)[inside].abs().max() < 0.6  # levels are rounded to whole grey values


def test_warps_are_inverse_to_each_other():
    torch.manual_seed(1)
    batch = pairs_of(smooth_photo()).sample(4)
    grid = pixel_grid(64, 96)
    for there, back in zip(batch.warp01, batch.warp10):
        pixels = there.round().nan_to_num(-1).long()
        seen = torch.isfinite(there).all(-1)
        returned = back[pixels[..., 1].clamp(0), pixels[..., 0].clamp(0)]
        known = seen & torch.isfinite(returned).all(-1)
        # rounding to a whole pixel costs up to 0.71 px times the scale between the views
        assert ((returned - grid)[known].norm(dim=-1) < 2).all() and known.sum() > 100


def test_the_first_view_lies_on_the_photograph_and_every_counterpart_too():
    torch.manual_seed(2)
    batch = pairs_of(smooth_photo(), rotation_deg=90.0, scale=3.0).sample(8)
    limit = torch.tensor([95.0, 63.0])
    inside = (batch.warp01 >= 0) & (batch.warp01 <= limit)
    assert inside[torch.isfinite(batch.warp01)].all()


def test_project_applies_the_homography():
    matrix = torch.tensor([[[1.1, 0.1, 3.0], [-0.2, 0.9, 5.0], [1e-3, 2e-3, 1.0]]])
    grid = pixel_grid(20, 30)
    expected = cv2.perspectiveTransform(grid.reshape(-1, 1, 2).numpy(), matrix[0].numpy()).reshape(20, 30, 2)
    np.testing.assert_allclose(
        project(matrix, grid.flatten(0, 1))[0].unflatten(0, (20, 30)).numpy(), expected, rtol=1e-4, atol=1e-5
    )


def test_groups_edges_and_keypoints_move_with_the_picture():
    torch.manual_seed(3)
    photo = smooth_photo()
    groups = torch.zeros(1, 240, 320, dtype=torch.int32)
    groups[:, :, :160], groups[:, :, 160:] = 1, 2
    photo.groups, photo.edges = groups, groups == 2
    photo.levels = pyramid(torch.where(groups == 1, 50, 200).to(torch.uint8))
    y, x = torch.meshgrid(torch.arange(10.0, 230, 20), torch.arange(10.0, 310, 20), indexing="ij")
    photo.keypoints = torch.stack((x.flatten(), y.flatten()), -1)
    batch = pairs_of(photo).sample(6)
    for side in "01":
        image, groups, edges, labels = (getattr(batch, f"{k}{side}") for k in ("image", "groups", "edges", "keypoints"))
        on = edges[:, 0].isfinite()
        assert ((image[:, 0] > 125 / 255) == (groups == 2))[on].float().mean() > 0.99
        assert ((edges[:, 0] == 1) == (groups == 2))[on].all() and (groups[~on] == 0).all()
        assert (labels[:, 0].isfinite() == on).all() and (labels == 1).sum() > 20
    assert batch.edges0.isfinite().all() and 0.5 < batch.edges1.isfinite().float().mean() < 1


def test_labels_of_both_views_are_the_same_points_of_the_photograph():
    """Without scale between the views a labelled pixel of one is, through the warp, near one of the other."""
    torch.manual_seed(6)
    photo = smooth_photo()
    y, x = torch.meshgrid(torch.arange(6.0, 236, 16), torch.arange(6.0, 316, 16), indexing="ij")
    photo.keypoints = torch.stack((x.flatten(), y.flatten()), -1)
    batch = pairs_of(photo, scale=1.0).sample(4)
    checked = 0
    for n in range(4):
        there = batch.warp01[n][batch.keypoints0[n, 0] == 1]
        there = there[there.isfinite().all(-1)]
        labelled = (batch.keypoints1[n, 0] == 1).nonzero().flip(1).float()
        inside = ((there > 2) & (there < torch.tensor([93.0, 61.0]))).all(-1)
        assert (torch.cdist(there[inside], labelled).amin(1) < 1.5).all()
        checked += int(inside.sum())
    assert checked > 20


def test_the_embedding_of_the_second_view_is_that_of_its_cells():
    torch.manual_seed(7)
    photo = smooth_photo()
    photo.groups, photo.edges = torch.ones(1, 240, 320, dtype=torch.int16), torch.zeros(1, 240, 320, dtype=torch.bool)
    columns = torch.arange(1.0, 65).expand(64, 64)  # a cell says its column: one is 320 / 64 = 5 pixels wide
    photo.embedding = columns.expand(256, 64, 64).half()
    pairs = pairs_of(photo, rotation_deg=30.0)
    batch = pairs.sample(6)
    assert batch.embedding0.shape == batch.embedding1.shape == (6, 256, 8, 12)
    off = batch.embedding1[:, 0] == 0
    outside = F.max_pool2d(batch.edges1.isnan().float(), 8)[:, 0] == 1
    assert (off == outside).all() and off.any() and not off.all()
    # at the centre of a cell of view 1 is, in view 0, a place whose own cells say the same columns
    centre = batch.warp10[:, 3::8, 3::8]
    known = centre.isfinite().all(-1) & ~off
    there = F.grid_sample(batch.embedding0[:, :1], sampling_grid(centre.nan_to_num(0), (96, 64)), align_corners=False)
    apart = (there[:, 0] - batch.embedding1[:, 0]).abs()[known]
    assert known.sum() > 50 and apart.median() < 0.2


def test_photographs_without_teacher_join_a_batch_with_some():
    torch.manual_seed(4)
    taught = smooth_photo()
    taught.groups = torch.ones(2, 240, 320, dtype=torch.int16)
    taught.edges = torch.zeros(2, 240, 320, dtype=torch.bool)
    batch = HomographyPairs(PhotoSource([taught, smooth_photo(seed=1)]), (96, 64), "cpu", HomographyConfig()).sample(8)
    assert batch.has_teacher0.sum() == batch.has_teacher1.sum() == 4
    assert (batch.groups0[~batch.has_teacher0] == 0).all() and (batch.groups1[batch.has_teacher1] > 0).any()
    both = concatenate([batch, pairs_of(smooth_photo()).sample(2)])
    assert len(both) == 10 and both.groups0.shape == (10, 64, 96) and both.has_teacher1.tolist()[-2:] == [False, False]


def test_unlabelled_is_unknown_not_empty():
    labelled = smooth_photo()
    labelled.keypoints = torch.tensor([[160.0, 120.0]])
    joined = concatenate([pairs_of(labelled).sample(1), pairs_of(smooth_photo()).sample(1)])
    assert joined.keypoints0[0].isfinite().any() and joined.keypoints0[1].isnan().all()


def test_bad_photographs_are_listed_and_skipped(tmp_path):
    cv2.imwrite(str(tmp_path / "good.png"), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    source = load_photos([tmp_path], PhotoLoader(1))
    assert [photo.name for photo in source.photos] == ["good"]
    assert [path.name for path, _ in source.skipped] == ["bad.jpg"]


@pytest.mark.parametrize("what", ["teacher", "labels", "features"])
def test_what_was_made_of_another_size_is_refused(tmp_path, what):
    photos = tmp_path / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "x.png"), np.zeros((40, 60, 3), np.uint8))
    cv2.imwrite(str(photos / "y.png"), np.zeros((40, 60, 3), np.uint8))
    store = {"teacher": TeacherStore, "labels": LabelStore, "features": FeatureStore}[what](tmp_path / "store")
    store.create({})
    points, scores = np.full((1, 2), 5.0), np.ones(1)
    for name, height in (("x", 41), ("y", 40)):
        if what == "teacher":
            entry = TeacherEntry(np.ones((1, height, 60), np.uint16), np.zeros((1, height, 60), bool))
            store.write(name, entry.arrays(), entry.meta())
        elif what == "labels":
            store.write(name, *labels_entry(KeypointLabels(points, scores, (60, height))))
        else:
            features = ReferenceFeatures(points, scores, np.zeros(1), np.ones((1, 4)), (60, height))
            store.write(name, *features_entry(features, "sift"))
    source = load_photos([photos], PhotoLoader(1, **{what: store}))
    assert [photo.name for photo in source.photos] == ["y"]
    assert "60x40" in source.skipped[0][1] and "60x41" in source.skipped[0][1]


def test_groups_take_two_bytes_and_too_many_are_refused(tmp_path):
    store = TeacherStore(tmp_path / "store")
    store.create({})
    for name, largest in (("few", 32767), ("many", 32768)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((40, 60, 3), np.uint8))
        groups = np.full((1, 40, 60), largest, np.uint16)
        entry = TeacherEntry(groups, groups > 0)
        store.write(name, entry.arrays(), entry.meta())
    source = load_photos([tmp_path], PhotoLoader(1, teacher=store))
    (photo,) = source.photos
    assert photo.groups.dtype == torch.int16 and photo.groups.unique().tolist() == [32767]
    assert "has 32768 groups, expected at most 32767" in source.skipped[0][1]
    torch.manual_seed(0)
    assert pairs_of(photo).sample(1).groups0.max() == 32767


def test_a_store_of_other_photographs_is_refused_and_of_some_of_them_is_said(tmp_path, capsys):
    photos, store = tmp_path / "photos", LabelStore(tmp_path / "store")
    photos.mkdir()
    store.create({})
    for name, value in (("x", 0), ("y", 9)):
        cv2.imwrite(str(photos / f"{name}.png"), np.full((40, 60, 3), value, np.uint8))
    arrays, meta = labels_entry(KeypointLabels(np.full((1, 2), 5.0), np.ones(1), (60, 40)))
    store.write("x", arrays, {**meta, "content": content_hash(photos / "y.png")})  # another photograph called x
    with pytest.raises(StoreError, match="store: 0 of 2 photographs have an entry"):
        load_photos([photos], PhotoLoader(1, labels=store))
    store.write("y", arrays, {**meta, "content": content_hash(photos / "y.png")})
    source = load_photos([photos], PhotoLoader(1, labels=store))
    assert [photo.keypoints is not None for photo in source.photos] == [False, True]
    assert "store: 1 of 2 photographs have an entry" in capsys.readouterr().out


def test_photographs_that_do_not_fit_give_the_same_batches(tmp_path, capsys):
    """Those in memory, those read ahead, and those drawn twice at the end of an epoch."""
    photos, store = tmp_path / "photos", TeacherStore(tmp_path / "store")
    photos.mkdir()
    store.create({})
    for n in range(5):
        image = smooth_photo(seed=n).levels[0][0].numpy()
        cv2.imwrite(str(photos / f"{n}.png"), image)
        groups = np.full((1, *image.shape), n + 1, np.uint16)
        entry = TeacherEntry(groups, groups > 3)
        store.write(str(n), entry.arrays(), {**entry.meta(), "content": content_hash(photos / f"{n}.png")})
    loader = PhotoLoader(1, teacher=store)
    whole = load_photos([photos], loader)
    some = load_photos([photos], loader, memory=2.5 * whole.photos[0].nbytes)
    assert [isinstance(photo, Photo) for photo in some.photos] == [True, True, False, False, False]
    assert "5 photographs take" in capsys.readouterr().out
    assert identity(whole, []) == identity(some, []) and some.taught and not some.embedded
    batches = []
    for source in (whole, some):
        pairs = HomographyPairs(source, (96, 64), "cpu", HomographyConfig())
        torch.manual_seed(0)
        batches.append([pairs.sample(3) for _ in range(4)] + [pairs.state()])
    for one, two in zip(batches[0][:-1], batches[1][:-1], strict=True):
        assert torch.equal(one.image0, two.image0) and torch.equal(one.groups1, two.groups1)
    assert batches[0][-1] == batches[1][-1]
    for path in photos.glob("*.png"):
        path.unlink()
    with pytest.raises(StoreError, match=r"[234]\.png: cannot be read"):
        for _ in range(20):  # those that were read ahead are still there
            some.draw(5)


def test_the_identity_of_data_changes_with_every_content(tmp_path):
    def known():
        return identity(load_photos([tmp_path], PhotoLoader(1)), [])

    for name in ("x", "y"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((40, 60, 3), np.uint8))
    first = known()
    assert known() == first
    cv2.imwrite(str(tmp_path / "y.png"), np.ones((40, 60, 3), np.uint8))
    second = known()
    (tmp_path / "y.png").rename(tmp_path / "z.png")
    assert len({first, second, known()}) == 3


def test_no_photographs_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(StoreError, match=str(tmp_path)):
        load_photos([tmp_path], PhotoLoader(1))


def test_photometric_change_keeps_the_range_and_differs_between_images():
    torch.manual_seed(0)
    images = torch.rand(1, 1, 64, 64).expand(8, 1, 64, 64)
    changed = Photometric()(images)
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
    assert len({round(float(image.mean()), 4) for image in changed}) == 8
    assert Photometric(0.0)(images) is images


def test_a_grey_network_sees_colours_mixed_anew_in_every_view():
    torch.manual_seed(0)
    red_and_blue = torch.zeros(64, 3, 8, 8)
    red_and_blue[:, 0, :, :4], red_and_blue[:, 2, :, 4:] = 1, 1
    left, right = grey(red_and_blue, 1.0)[:, 0, 0, [0, -1]].unbind(1)
    assert (left > right).any() and (left < right).any()
    white = torch.ones(4, 3, 8, 8)
    torch.testing.assert_close(grey(white, 1.0), torch.ones(4, 1, 8, 8))
    cv2_grey = cv2.cvtColor(red_and_blue[0].permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY)
    np.testing.assert_allclose(Photometric(0.0, channels=1)(red_and_blue)[0, 0], cv2_grey, atol=1e-6)


def test_blur_keeps_flat_images_and_jpeg_nearly_does():
    flat = torch.full((3, 3, 40, 50), 0.4)
    torch.testing.assert_close(blur(flat, 1.0), flat, atol=1e-5, rtol=0)
    assert (jpeg(flat, 1.0) - flat).abs().max() < 0.01


def test_jpeg_loses_fine_detail_but_not_the_picture():
    image = smooth_photo().levels[0][None].float() / 255
    noisy = (image + 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert 0 < (jpeg(noisy, 1.0) - noisy).abs().mean() < 0.06


def referenced_photo():
    """A photograph with 50 features in its first octave and 20 in its second."""
    photo = smooth_photo()
    rng = torch.Generator().manual_seed(0)
    for octave, count in enumerate((50, 20)):
        points = torch.rand(count, 2, generator=rng) * torch.tensor([319.0, 239.0])
        descriptors = torch.randn(count, 8, generator=rng).half()
        photo.references.append(ReferenceOctave(points, torch.linspace(3, -3, count), descriptors, 2.0**octave))
    return photo


def test_reference_points_are_the_same_place_in_both_views():
    torch.manual_seed(3)
    batch = pairs_of(referenced_photo(), size=(256, 192), rotation_deg=30.0).sample(8)
    assert (batch.reference_descriptors[..., 0] != 0).sum(1).unique().tolist() == [20, 50]  # by the coarser view
    for points0, points1, warp in zip(batch.reference0, batch.reference1, batch.warp01):
        shown = torch.isfinite(points0).all(-1) & torch.isfinite(points1).all(-1)
        at = points0[shown].round().long().clamp(min=0)
        carried = warp[at[:, 1].clamp(max=191), at[:, 0].clamp(max=255)]
        known = torch.isfinite(carried).all(-1)
        # rounding to a whole pixel costs up to 0.71 px times the scale between the views
        assert ((carried - points1[shown])[known].norm(dim=-1) < 2.5).all() and known.sum() > 0


def test_reference_features_are_joined_with_pairs_that_have_none():
    with_reference = pairs_of(referenced_photo()).sample(1)
    joined = concatenate([with_reference, pairs_of(smooth_photo()).sample(1)])
    assert torch.isfinite(joined.reference0[0]).any() and joined.reference0[1].isnan().all()


class Operations(TorchDispatchMode):
    """Counts operations of torch, views of tensors among them."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_a_larger_batch_takes_few_more_operations():
    """On a GPU each of them costs its launch, whatever its size."""
    photo = referenced_photo()
    photo.groups = torch.ones(1, 240, 320, dtype=torch.int16)
    photo.edges, photo.keypoints = photo.groups > 0, torch.ones(3, 2)
    counts = []
    for pairs in (2, 10):
        with Operations() as operations:
            pairs_of(photo).sample(pairs)
        counts.append(operations.count)
    assert (counts[1] - counts[0]) / 8 < 50


def split_photo(side=1):
    """A photograph whose left half is of group 1 and whose right half of 2, as a teacher saw it at 1 / side of it."""
    photo = smooth_photo()
    photo.groups = torch.ones(1, 240 // side, 320 // side, dtype=torch.int16)
    photo.groups[..., 160 // side :] = 2
    photo.edges, photo.keypoints = photo.groups == 2, torch.tensor([[160.0, 120.0]])
    return photo


def test_a_teacher_may_have_seen_the_photograph_at_another_size():
    batches = []
    for side in (1, 2):
        torch.manual_seed(5)
        batches.append(pairs_of(split_photo(side)).sample(4))
    assert batches[0].groups0.unique().tolist() == [1, 2]
    for name in ("groups0", "groups1", "edges0", "edges1"):
        torch.testing.assert_close(*(getattr(batch, name) for batch in batches), equal_nan=True)


def test_photographs_without_teacher_and_labels_beside_others_have_none():
    torch.manual_seed(0)
    pairs = HomographyPairs(PhotoSource([split_photo(), smooth_photo()]), (96, 64), "cpu", HomographyConfig())
    batch = pairs.sample(2)
    taught = batch.has_teacher0
    assert sorted(taught.tolist()) == [False, True]
    assert (
        (batch.groups0[taught] > 0).all() and (batch.groups0[~taught] == 0).all() and (batch.edges0[~taught] == 0).all()
    )
    assert batch.keypoints0[taught].isfinite().all() and batch.keypoints0[~taught].isnan().all()
    assert batch.keypoints1[taught].isfinite().any() and batch.keypoints1[~taught].isnan().all()
