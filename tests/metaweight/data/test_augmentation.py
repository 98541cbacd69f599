from __future__ import annotations

import pickle

import pytest
import torch
from support.devices import DEVICES, no_waiting
from torchvision.transforms import functional as tv

from metaweight.data import Normalise, Pipeline, RandomCropFlip, crop_flip


def images(batch: int = 5, dtype: torch.dtype = torch.uint8, height: int = 7, width: int = 9):
    values = torch.randint(0, 200, (batch, 3, height, width), generator=torch.Generator())
    return values.to(dtype)


def by_torchvision(batch, offsets, flips, padding):
    """One sample after the other, with the library's own pad, crop and flip."""
    height, width = batch.shape[-2:]
    results = []
    for image, top, left, flip in zip(batch, *offsets.tolist(), flips.tolist(), strict=True):
        result = tv.pad(image, [padding] * 4, padding_mode="reflect")
        result = tv.crop(result, top, left, height, width)
        results.append(tv.hflip(result) if flip else result)
    return torch.stack(results)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("padding", [0, 2, 6])
def test_a_batch_equals_single_images_through_torchvision(dtype, padding):
    batch = images(40, dtype)
    augment = RandomCropFlip(padding, generator=torch.Generator().manual_seed(3))
    twin = RandomCropFlip(padding, generator=torch.Generator().manual_seed(3))
    expected = by_torchvision(batch, *twin.draw(40, batch.device), padding)
    result = augment(batch)
    assert result.dtype == dtype
    assert torch.equal(result, expected)


def test_every_offset_and_flip_pixel_by_pixel():
    batch = images(1, height=3, width=4)
    for top in range(5):
        for left in range(5):
            for flip in (False, True):
                got = crop_flip(batch, torch.tensor([[top], [left]]), torch.tensor([flip]), 2)
                for y in range(3):
                    for x in range(4):
                        row = y + top - 2
                        column = (3 - x if flip else x) + left - 2
                        row = -row if row < 0 else 4 - row if row > 2 else row
                        column = -column if column < 0 else 6 - column if column > 3 else column
                        assert torch.equal(got[0, :, y, x], batch[0, :, row, column])


def test_padding_zero_without_flip_is_the_identity_in_new_memory():
    batch = images()
    result = RandomCropFlip(0, flip=False)(batch)
    assert torch.equal(result, batch)
    assert result.data_ptr() != batch.data_ptr()


def test_draws_are_uniform_and_independent_per_sample():
    batch = 40_000
    augment = RandomCropFlip(1, generator=torch.Generator().manual_seed(0))
    offsets, flips = augment.draw(batch, torch.device("cpu"))
    cell = offsets[0] * 6 + offsets[1] * 2 + flips
    counts = torch.bincount(cell, minlength=18).double()
    statistic = ((counts - batch / 18) ** 2 / (batch / 18)).sum()
    # The χ² distribution of 17 degrees of freedom is above 45 with probability 2e-4.
    assert statistic < 45


def test_no_flip_never_mirrors_and_keeps_the_offsets():
    one = RandomCropFlip(2, flip=False, generator=torch.Generator().manual_seed(1))
    two = RandomCropFlip(2, flip=True, generator=torch.Generator().manual_seed(1))
    offsets, flips = one.draw(50, torch.device("cpu"))
    assert not flips.any()
    assert torch.equal(offsets, two.draw(50, torch.device("cpu"))[0])


def test_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    first, second = RandomCropFlip()(images()), RandomCropFlip()(images())
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())


def test_no_value_is_read_on_the_device_of_the_images():
    batch = torch.empty(4, 3, 8, 8, dtype=torch.uint8, device="meta")
    pipeline = Pipeline(RandomCropFlip(2), Normalise([0.5] * 3, [0.5] * 3))
    assert pipeline(batch).shape == batch.shape


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("source", DEVICES)
def test_the_host_never_waits_for_the_gpu(source, device):
    batch = images(16).to(device)
    generator = torch.Generator(source).manual_seed(0)
    twin = RandomCropFlip(2, generator=torch.Generator(source).manual_seed(0))
    pipeline = Pipeline(RandomCropFlip(2, generator=generator), Normalise([0.5] * 3, [0.2] * 3))
    # Draws on a card for images on the host have to be waited for.
    with no_waiting(device):
        result = pipeline(batch)
    expected = by_torchvision(batch.cpu(), *(d.cpu() for d in twin.draw(16, batch.device)), 2)
    assert torch.allclose(result.cpu(), (expected / 255 - 0.5) / 0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RandomCropFlip(-1), "padding=-1 was given; use 0 or more"),
        (lambda: RandomCropFlip(7)(images()), "padding=7 .* 7 × 9 pixels; .* at most 6"),
        (lambda: RandomCropFlip()(images()[0]), r"shape \(3, 7, 9\) were given; use .*B, C, H, W"),
    ],
)
def test_impossible_crops_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_normalise_equals_torchvision():
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    batch = images()
    expected = torch.stack([tv.normalize(image / 255, mean, std) for image in batch])
    normalise = Normalise(mean, std)
    assert torch.allclose(normalise(batch), expected)
    assert normalise(batch).dtype == torch.float32


def test_normalise_takes_floats_as_they_are():
    batch = images(dtype=torch.float64)
    result = Normalise([1, 2, 3], [2, 4, 8])(batch)
    assert result.dtype == torch.float64
    assert torch.equal(result[:, 2], (batch[:, 2] - 3) / 8)


def test_normalise_first_used_in_inference_mode_serves_gradients_later():
    normalise = Normalise([0.5] * 3, [0.5] * 3)
    with torch.inference_mode():
        normalise(images(dtype=torch.float32))
    batch = images(dtype=torch.float32).requires_grad_()
    normalise(batch).sum().backward()
    assert torch.equal(batch.grad, torch.full_like(batch, 2.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Normalise([0.5], [0.5, 0.5]), "1 means and 2 deviations"),
        (lambda: Normalise([], []), "0 means and 0 deviations"),
        (lambda: Normalise([0.5], [0.0]), "every deviation has to be above 0"),
        (lambda: Normalise([0.5], [0.5])(images()), r"normalisation of 1 channels; use shape \(B"),
        (
            lambda: Normalise([0.5] * 3, [0.5] * 3)(images(dtype=torch.int64)),
            "dtype torch.int64 were given; use uint8 or a floating-point",
        ),
    ],
)
def test_normalise_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_pipeline_applies_the_steps_in_order():
    batch = images(dtype=torch.float32)
    assert torch.equal(Pipeline(torch.neg, torch.relu)(batch), torch.zeros_like(batch))
    assert torch.equal(Pipeline(torch.relu, torch.neg)(batch), -batch)
    assert Pipeline()(batch) is batch


def test_a_restored_pipeline_goes_on_with_the_same_draws():
    batch = images(30)
    original = Pipeline(torch.clone, RandomCropFlip(3))
    original(batch)
    state = original.state_dict()
    assert state.keys() == {"1"}
    expected = [original(batch), original(batch)]
    restored = Pipeline(torch.clone, RandomCropFlip(3))
    restored.load_state_dict(state)
    assert all(torch.equal(restored(batch), e) for e in expected)


def test_a_state_of_another_pipeline_is_refused():
    with pytest.raises(ValueError, match=r"steps \['1'\] was given .* whose steps \['0'\]"):
        Pipeline(RandomCropFlip()).load_state_dict({"1": {}})


def test_a_pipeline_can_be_pickled():
    pipeline = Pipeline(Normalise([0.5] * 3, [0.5] * 3))
    batch = images()
    expected = pipeline(batch)
    assert torch.equal(pickle.loads(pickle.dumps(pipeline))(batch), expected)


def test_a_transform_of_two_loaders_has_one_share() -> None:
    """Both tell it, and it draws as where one does."""
    once, twice = (RandomCropFlip(generator=torch.Generator().manual_seed(7)) for _ in range(2))
    once.take_share(3, 4)
    for _ in range(2):
        twice.take_share(3, 4)
    assert once.generator.initial_seed() == twice.generator.initial_seed() == 10
    twice.take_share(1, 2)
    assert twice.generator.initial_seed() == 8
