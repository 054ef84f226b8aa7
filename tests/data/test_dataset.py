"""What an epoch sees of a data set: binary pixels, and batches in an order."""

import pytest
import torch

from rhovae_kernels.data import Dataset, named


class TestBinarization:
    @pytest.mark.parametrize(
        ("binarize", "label"),
        [("round", "rounded"), ("static", "static"), ("dynamic", "dynamic")],
    )
    def test_pixels_are_0_or_1_and_results_are_labelled(self, binarize, label):
        digits = named.load("digits", binarize=binarize)
        assert set(digits.images.unique().tolist()) == {0.0, 1.0} and digits.label == label
        assert {x for batch in digits.batches(500) for x in batch.unique().tolist()} == {0.0, 1.0}

    def test_rounding_is_at_one_half(self):
        grey, rounded = named.load("digits"), named.load("digits", binarize="round")
        assert torch.equal(rounded.images, (grey.images >= 0.5).float())

    def test_the_static_draw_is_the_same_for_every_seed_and_epoch(self):
        first = named.load("digits", binarize="static", seed=0)
        second = named.load("digits", binarize="static", seed=1)
        assert torch.equal(first.images_of(0, 0), second.images_of(7, 1))

    def test_dynamic_draws_follow_seed_and_epoch_alone(self):
        first = named.load("digits", binarize="dynamic")
        second = named.load("digits", binarize="dynamic")
        assert torch.equal(first.images_of(3, 5), second.images_of(3, 5))
        assert not torch.equal(first.images_of(3, 5), first.images_of(4, 5))
        assert not torch.equal(first.images_of(3, 5), first.images_of(3, 6))

    @pytest.mark.parametrize("binarize", ["static", "dynamic"])
    def test_a_pixel_is_1_as_often_as_it_is_bright(self, binarize):
        grey, drawn = named.load("digits"), named.load("digits", binarize=binarize)
        # 1257·64 draws of variance at most 1/4: five standard errors are 5·0.5/√80448.
        assert abs((drawn.images - grey.images).mean()) < 0.009


class TestBatches:
    def test_an_epoch_holds_every_datum_once(self):
        digits = named.load("digits", split="test")
        batches = list(digits.batches(100, epoch=2, seed=3))
        assert [len(batch) for batch in batches] == [100, 100, 100, 60]
        rows = torch.cat(batches).flatten(1)
        assert not torch.equal(rows, digits.images.flatten(1))
        assert sorted(map(tuple, rows.tolist())) == sorted(
            map(tuple, digits.images.flatten(1).tolist())
        )

    def test_the_order_follows_seed_and_epoch_alone(self):
        digits = named.load("digits", split="test")

        def order(epoch: int, seed: int) -> torch.Tensor:
            torch.rand(1)  # what else was drawn does not matter
            return torch.cat(list(digits.batches(64, epoch, seed)))

        assert torch.equal(order(1, 2), order(1, 2))
        assert not torch.equal(order(1, 2), order(2, 2))
        assert not torch.equal(order(1, 2), order(1, 3))

    def test_without_shuffling_the_order_is_that_of_the_images(self):
        digits = named.load("digits", split="test")
        batches = digits.batches(64, epoch=1, shuffle=False)
        assert torch.equal(torch.cat(list(batches)), digits.images)


def as_bytes(dataset: Dataset) -> Dataset:
    """The same pixels, stored as bytes."""
    values = (dataset.values * 255).round().to(torch.uint8)
    return Dataset(dataset.name, dataset.split, values, binarize=dataset.binarize)


def as_floats(dataset: Dataset) -> Dataset:
    values = dataset.values.float() / 255
    return Dataset(dataset.name, dataset.split, values, binarize=dataset.binarize)


class TestBytes:
    @pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
    @pytest.mark.parametrize("binarize", ["none", "round", "static", "dynamic"])
    def test_batches_of_bytes_have_the_bits_of_those_of_floats(self, binarize, shuffle):
        of_bytes = as_bytes(named.load("digits", binarize=binarize, split="test"))
        of_floats = as_floats(of_bytes)
        assert of_bytes.scaled and not of_floats.scaled
        pairs = zip(
            of_bytes.batches(100, 2, 3, shuffle), of_floats.batches(100, 2, 3, shuffle), strict=True
        )
        for one, other in pairs:
            assert one.dtype is torch.float32 and torch.equal(one, other)
        assert torch.equal(of_bytes.images, of_floats.images)
        assert of_bytes.label == of_floats.label

    def test_a_byte_counts_from_0_to_1(self):
        values = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
        images = Dataset("mine", "train", values).images.flatten()
        assert torch.equal(images, torch.arange(256) / 255)

    @pytest.mark.parametrize("binarize", ["none", "round"])
    def test_no_more_bytes_become_floats_than_a_batch_holds(self, binarize, monkeypatch):
        dataset = as_bytes(named.load("digits", binarize=binarize, split="test"))
        monkeypatch.setattr(Dataset, "images_of", None)  # which makes floats of all
        assert [len(batch) for batch in dataset.batches(100)] == [100, 100, 100, 60]


class TestBinarized:
    @pytest.mark.parametrize(
        ("values", "says"),
        [
            (torch.rand(5, 784), r"mine are points of shape \(784,\), which take 'none'"),
            (torch.linspace(-1, 3, 5).reshape(5, 1, 1, 1), "mine holds values from -1 to 3"),
        ],
        ids=["points", "out of range"],
    )
    def test_what_are_no_pixels_is_not_made_binary(self, values, says):
        dataset = Dataset("mine", "train", values)
        with pytest.raises(ValueError, match=says):
            dataset.binarized("round", seed=0)
        assert dataset.binarized("none", seed=4) == Dataset("mine", "train", values, seed=4)

    def test_an_unknown_way_is_refused_with_those_there_are(self):
        with pytest.raises(ValueError, match="binarize is 'no'; it must be one of none, round"):
            Dataset("mine", "train", torch.rand(5, 1, 2, 2)).binarized("no", seed=0)

    def test_images_out_of_range_are_not_labelled_grey(self):
        values = torch.randn(5, 1, 2, 2)
        assert Dataset("mine", "train", values).label == "continuous"
        assert Dataset("mine", "train", values.sigmoid()).label == "grey"
