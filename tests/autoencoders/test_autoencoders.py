"""The learned codecs: the Gaussian, the codebook, what moves it, and the scale of latents."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unveil.autoencoders import AutoencoderKL, AutoencoderKLConfig, DiagonalGaussian, VQModel, VQModelConfig
from unveil.autoencoders.vq import Quantiser, Remap, codebook_usage
from unveil.errors import RecipeError, ShapeError


def kl(**changes: object) -> AutoencoderKL:
    torch.manual_seed(0)
    settings = {"latent_channels": 2, "groups": 4} | changes
    return AutoencoderKL(AutoencoderKLConfig(1, 1, 8, (1, 2), 1, 3, **settings)).eval()  # type: ignore[arg-type]


def quantiser(**changes: object) -> Quantiser:
    torch.manual_seed(0)
    return Quantiser(2, VQModelConfig(1, 1, 8, (1,), 1, 2, groups=4, **{"codebook_size": 8} | changes))  # type: ignore[arg-type]


def test_a_gaussian_is_sampled_at_its_mean_and_its_divergence_is_that_of_torch():
    posterior = DiagonalGaussian(torch.tensor([[[[0.5, -1.0]]]]), torch.tensor([[[[0.3, -2.0]]]]))
    assert torch.equal(posterior.sample(torch.zeros(1, 1, 1, 2)), posterior.mode)
    torch.testing.assert_close(posterior.sample(torch.ones(1, 1, 1, 2)), posterior.mean + posterior.std)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, posterior.std), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(posterior.kl(), theirs.sum()[None])


def test_the_variance_is_held_within_the_published_limits():
    moments = torch.tensor([0.0, 0.0, 100.0, -100.0]).view(1, 4, 1, 1)
    assert kl().posterior_of(moments).logvar.flatten().tolist() == [20.0, -30.0]


@torch.no_grad()
def test_latents_are_scaled_and_decoded_as_what_they_were():
    plain, scaled = kl(), kl(scale=(2.0, 0.5), shift=(1.0, -1.0))
    scaled.load_state_dict(plain.state_dict() | {n: getattr(scaled, n) for n in ("scale", "shift")})
    pixels = torch.randn(2, 1, 4, 8)
    z = plain.encode(pixels)
    expected = (z - torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)) * torch.tensor([2.0, 0.5]).view(1, 2, 1, 1)
    torch.testing.assert_close(scaled.encode(pixels), expected)
    torch.testing.assert_close(scaled.decode(expected), plain.decode(z), rtol=1e-4, atol=1e-5)
    assert {"scale", "shift"} <= scaled.state_dict().keys()
    noise = torch.randn(2, 2, 2, 4)
    torch.testing.assert_close(plain.encode(pixels, noise), plain.posterior(pixels).sample(noise))


def test_the_shape_of_latents_and_sizes_that_do_not_fit():
    assert kl().latent_shape((1, 4, 8)) == (2, 2, 4)
    assert kl(latent_channels=None).latent_shape((1, 4, 8)) == (3, 2, 4)
    with pytest.raises(ShapeError, match="width 7 px: must be a multiple of 2; nearest 6 or 8"):
        kl().latent_shape((1, 4, 7))
    with pytest.raises(ShapeError, match=r"images of shape \(3, 4, 8\): must be \(1, H, W\)"):
        kl().latent_shape((3, 4, 8))
    with pytest.raises(RecipeError, match="scale = 0"):
        kl(scale=0.0)
    with pytest.raises(RecipeError, match="shift: 3 numbers for 2 channels"):
        kl(shift=(1.0, 2.0, 3.0))


def test_the_last_layer_makes_the_pixels():
    codec = kl()
    before = codec.decode(torch.ones(1, 2, 2, 2))
    with torch.no_grad():
        codec.last_layer.mul_(2)
        codec.decoder.leave.bias.mul_(2)  # type: ignore[union-attr]
    torch.testing.assert_close(codec.decode(torch.ones(1, 2, 2, 2)), 2 * before)


# ---------------------------------------------------------------------- codebooks


def test_the_nearest_entry_is_taken_and_gradients_pass():
    book = quantiser()
    z = (0.1 * torch.randn(3, 2, 4, 5)).requires_grad_()
    found = book(z)
    places = z.detach().movedim(1, -1).reshape(-1, 2)
    assert torch.equal(found.indices.flatten(), torch.cdist(places, book.codebook).argmin(1))
    torch.testing.assert_close(found.latents, book.entry(found.indices))
    (weights := torch.randn_like(found.latents)).requires_grad_(False)
    (found.latents * weights).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, weights)


@pytest.mark.parametrize(("order", "of_codebook"), [("legacy", 0.25), ("fixed", 1.0)])
def test_both_orders_of_the_loss_have_one_value_and_their_own_gradients(order, of_codebook):
    book = quantiser(order=order)
    z = torch.randn(1, 2, 3, 3, requires_grad=True)
    found = book(z)
    error = (z - book.entry(found.indices)).detach()
    torch.testing.assert_close(found.loss.detach(), 1.25 * error.square().mean())
    found.loss.backward()
    assert z.grad is not None
    assert book.codebook.grad is not None
    torch.testing.assert_close(z.grad, (1.25 - of_codebook) * 2 * error / error.numel())
    total = torch.zeros_like(book.codebook).index_add_(0, found.indices.flatten(), error.movedim(1, -1).reshape(-1, 2))
    torch.testing.assert_close(book.codebook.grad, -of_codebook * 2 * total / error.numel())


def test_running_means_are_those_of_the_paper():
    book = quantiser(learned="ema", ema_decay=0.75)
    assert not book.codebook.requires_grad
    before, z = book.codebook.clone(), torch.randn(2, 2, 3, 3)
    indices = book.nearest(z)
    places, flat = z.movedim(1, -1).reshape(-1, 2), indices.flatten()
    book.observe(z, indices)
    for code in range(8):  # N <- g N + (1 - g) n and m <- g m + (1 - g) sum z; e = m / N
        mine = places[flat == code]
        count, total = 0.75 + 0.25 * len(mine), 0.75 * before[code] + 0.25 * mine.sum(0)
        torch.testing.assert_close(book.codebook[code], total / count)


@pytest.mark.parametrize("learned", ["ema", "gradient"])
def test_dead_entries_are_put_on_places_of_the_batch_by_a_generator(learned):
    books = []
    for _ in range(2):
        book = quantiser(learned=learned, ema_decay=0.5, restart_dead=0.2)
        with torch.no_grad():
            book.codebook[3:] = 50.0  # nobody will take these
            if learned == "ema":
                book.total[3:] = 50.0
        z = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(2)
        moved = [book.observe(z, book.nearest(z), generator) for _ in range(3)]
        assert moved == [0, 0, 5]  # 1, 1/2, 1/4, 1/8
        books.append(book)
    assert torch.equal(books[0].codebook, books[1].codebook)
    places = z.movedim(1, -1).reshape(-1, 2)
    assert torch.cdist(books[0].codebook[3:].detach(), places).min(1).values.max() == 0
    assert len(books[0].codebook[3:].detach().unique(dim=0)) == 5
    assert codebook_usage(books[0].nearest(z), 8).used > 0.7
    plain = quantiser()
    assert plain.observe(z, plain.nearest(z)) == 0
    assert plain.state_dict().keys() == {"codebook"}


def test_usage_and_perplexity():
    assert codebook_usage(torch.tensor([[0, 1], [2, 3]]), 8) == (0.5, pytest.approx(4.0))
    uneven = codebook_usage(torch.tensor([0, 0, 0, 5]), 8)
    assert uneven.perplexity == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    with pytest.raises(ShapeError, match="no indices"):
        codebook_usage(torch.tensor([], dtype=torch.long), 8)


def test_entries_counted_anew():
    remap = Remap((4, 1, 6))
    assert remap.remap_to_used(torch.tensor([[1, 4], [6, 0]])).tolist() == [[1, 0], [2, 3]]
    assert Remap((4, 1, 6), 2).remap_to_used(torch.tensor([5, 1])).tolist() == [2, 1]
    assert remap.unmap_to_all(torch.tensor([1, 0, 2, 3])).tolist() == [1, 4, 6, 4]
    with pytest.raises(RecipeError, match="unknown = 7"):
        Remap((4, 1), 7)


@torch.no_grad()
def test_a_vq_codec_encodes_before_and_decodes_after_its_codebook():
    torch.manual_seed(0)
    codec = VQModel(
        VQModelConfig(1, 1, 8, (1, 2), 1, 3, latent_channels=2, groups=4, codebook_size=16, scale=3.0)
    ).eval()
    pixels = torch.randn(2, 1, 4, 8)
    latents = codec.encode(pixels)
    z = codec.encoded(pixels)
    torch.testing.assert_close(latents, 3 * z)
    indices = codec.indices(latents)
    assert torch.equal(indices, codec.quantise(z).indices)
    torch.testing.assert_close(codec.decode(latents), codec.decoded(codec.entry(indices)), rtol=1e-4, atol=1e-5)
    again: Tensor = codec.to_latents(codec.entry(indices))
    torch.testing.assert_close(codec.decode(again), codec.decode(latents), rtol=1e-4, atol=1e-5)
    with pytest.raises(RecipeError, match=r"learned = 'mean': must be one of gradient, ema"):
        quantiser(learned="mean")
