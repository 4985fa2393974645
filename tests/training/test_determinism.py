"""No model, loss or mix of ours runs an operator that CUDA refuses in deterministic mode; what does is named."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from seglib.models import ARCHITECTURES, OWN_ENCODERS, build_model
from seglib.parts import find_parts
from seglib.training.device import autocast, explain_nondeterminism, find_nondeterministic, seed_everything
from seglib.training.losses import build_loss
from seglib.training.mixing import BATCH_MIXES, foreground_activation, mix_batch

SMALLEST = {"PAN": 128, "UNet3Plus": 128}  # [px]
ENCODERS = OWN_ENCODERS | {"DPT": ("tu-test_vit",)}
OFTEN = {"DPT", "DeepLabV3Plus", "FPN", "MAnet", "PSPNet", "Segformer", "SegNet", "UPerNet", "Unet"}  # others are slow
# Of families of timm that pool, pad, resize or attend in ways of their own.
TIMM = [
    *("davit_tiny", "efficientformerv2_s0", "gcvit_xxtiny", "hiera_tiny_224", "maxvit_pico_rw_256"),
    *("mvitv2_tiny", "nextvit_small", "pvt_v2_b2_li", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"),
]


def audit(architecture: str, encoder: str, image_size: int, device: str = "meta") -> dict[str, str]:
    """On the meta device nothing is computed, and interpolation takes the way that it takes on CUDA."""
    with torch.device(device):
        model = build_model(architecture, encoder, 3, image_size=image_size)
        images = torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8)
    return find_nondeterministic(lambda: model.train()(images))


@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_every_architecture_is_deterministic(architecture):
    encoder = ENCODERS.get(architecture, ("resnet18",))[0]
    device = "cpu" if encoder.startswith("tu-") else "meta"  # HRNet's many interpolations take 15 s there
    assert audit(architecture, encoder, SMALLEST.get(architecture, 64), device) == {}


@pytest.mark.slow
@pytest.mark.parametrize("encoder", smp.encoders.get_encoder_names())
def test_every_encoder_is_deterministic(encoder):
    assert audit("FPN", encoder, 64, "cpu" if encoder.startswith("mit_") else "meta") == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_families_of_timm_are_deterministic(name):
    assert audit("Unet", f"tu-{name}", 256) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_tiny_patch16_224", "volo_d1_224"])
def test_transformers_are_deterministic_at_sizes_that_they_were_not_made_for(name):
    assert audit("DPT", f"tu-{name}", 128) == {}


@pytest.mark.parametrize(
    "terms",
    [
        *({name: {}} for name in find_parts("loss")),
        {
            "cross_entropy": {"class_weights": "balanced", "label_smoothing": 0.1},
            "focal": {"class_weights": "balanced"},
        },
        {"lovasz": {"per_image": True}},
    ],
)
def test_every_loss_is_deterministic(terms):
    loss = build_loss(terms, 3, class_pixels=[5, 6, 7])
    logits, mask = torch.randn(2, 3, 64, 64, requires_grad=True), torch.randint(0, 3, (2, 64, 64), dtype=torch.uint8)
    assert find_nondeterministic(lambda: loss(logits, mask)) == {}
    assert logits.grad.any()  # the backward pass was looked at too


@pytest.mark.parametrize("name", BATCH_MIXES)
def test_every_mix_of_a_batch_is_deterministic(name):
    model = build_model("FPN", "resnet18", 3)
    images, masks = torch.zeros(3, 3, 64, 64, dtype=torch.uint8), torch.zeros(3, 64, 64, dtype=torch.uint8)
    options = {"seed": 0, "epoch": 1, "step": 1, "activation": lambda part: foreground_activation(model, part)}
    assert find_nondeterministic(lambda: mix_batch(images, masks, {name: {"p": 1.0}}, **options)[0]) == {}


@pytest.mark.parametrize(
    "compute, expected",
    [
        (lambda x: F.adaptive_avg_pool2d(x, 2), "_adaptive_avg_pool2d_backward"),
        (lambda x: F.adaptive_max_pool2d(x, 2), "adaptive_max_pool2d_backward"),
        (lambda x: F.interpolate(x, size=4, mode="area"), "_adaptive_avg_pool2d_backward"),
        (lambda x: F.interpolate(x, size=16, mode="bicubic"), "upsample_bicubic2d_backward"),
        (lambda x: F.interpolate(x, size=4, mode="bilinear", antialias=True), "_upsample_bilinear2d_aa_backward"),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "reflection_pad2d_backward"),
        (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), "max_unpool2d"),
        (lambda x: F.grid_sample(x, torch.zeros(1, 4, 4, 2)), "grid_sampler_2d_backward"),
        (lambda x: F.cross_entropy(x, torch.zeros(1, 8, 8, dtype=torch.int64)), "nll_loss2d_forward"),
        (lambda x: x.cumsum(0), "cumsum"),
        (lambda x: (x > 0).cumsum(0) * x, None),
        (lambda x: F.adaptive_avg_pool2d(x, 1), None),
        (lambda x: F.interpolate(x, size=16, mode="bilinear"), None),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"), None),
        (lambda x: F.max_pool2d(x, 3, stride=1), None),
    ],
)
def test_what_cuda_refuses_is_found(compute, expected):
    images = torch.randn(1, 3, 8, 8, requires_grad=True)
    assert list(find_nondeterministic(lambda: compute(images))) == ([expected] if expected else [])


@pytest.mark.parametrize("architecture, encoder", [("DeepLabV3Plus", "resnet18"), ("Segformer", "mit_b0")])
def test_no_training_step_reads_memory_that_nothing_was_written_to(architecture, encoder):
    """`seed_everything` leaves it as it is; filled with NaN as torch would, what read it would give NaN."""
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    masks, gradients = (images[:, 0] % 3).contiguous(), []
    try:
        for fill in (False, True):
            seed_everything(0, deterministic=True)
            assert not torch.utils.deterministic.fill_uninitialized_memory
            torch.utils.deterministic.fill_uninitialized_memory = fill
            model = build_model(architecture, encoder, 3, image_size=64).train()
            with autocast(torch.device("cpu"), "bfloat16"):
                logits = model(images)
            build_loss({"cross_entropy": 0.5, "dice": 0.2, "lovasz": 0.3}, 3)(logits, masks).backward()
            gradients.append([each.grad for each in model.parameters() if each.grad is not None])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_settings_are_as_before_an_audit():
    torch.use_deterministic_algorithms(True)
    try:
        find_nondeterministic(lambda: torch.ones(1))
        assert torch.get_deterministic_debug_mode() == 2
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_operator_that_cuda_refuses_is_told_with_its_module():
    model = build_model("Unet", "tu-edgenext_xx_small", 3)  # its position encoding adds up floats
    error = RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use")
    words = explain_nondeterminism(error, model, torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert words == (
        "deterministic: Unet uses cumsum in network.encoder.model.stages_1.blocks.1.pos_embd, which has no deterministic"
        " form on CUDA; choose another architecture or encoder, or set deterministic: false"
    )


def test_an_operator_outside_of_the_model_is_told_alone():
    error = RuntimeError("nll_loss2d_forward_out_cuda_template does not have a deterministic implementation, but you")
    words = explain_nondeterminism(error, build_model("FPN", "resnet18", 3), torch.zeros(2, 3, 64, 64).byte())
    assert words.startswith(
        "deterministic: nll_loss2d_forward_out_cuda_template is used outside of the model, which has"
    )
    assert words.endswith("choose another loss, or set deterministic: false")


def test_cublas_without_its_workspace_is_told_by_the_variable():
    error = RuntimeError("... you must set an environment variable: CUBLAS_WORKSPACE_CONFIG=:4096:8 or ...")
    words = explain_nondeterminism(error, torch.nn.Identity(), torch.zeros(1))
    assert words.startswith("deterministic: true needs CUBLAS_WORKSPACE_CONFIG=:4096:8 before the first matrix product")


def test_another_error_is_not_explained():
    assert explain_nondeterminism(RuntimeError("out of memory"), torch.nn.Identity(), torch.zeros(1)) == ""
