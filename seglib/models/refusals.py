"""Words, in one line, why a model cannot be built or run; what the libraries say is sometimes empty."""

import re


def explain_refusal(architecture: str, encoder: str, error: BaseException, doing: str = "be built") -> str:
    """Say what an error of smp, timm or torch means for whoever chose the names; `doing` follows "cannot"."""
    text = str(error).strip().split("\n")[0].rstrip("!.")
    if "dilated" in text or "output_stride" in text or (not text and isinstance(error, AssertionError)):
        reason = f"encoder {encoder!r} cannot be dilated, which {architecture} needs"
    elif "Expected more than 1 value per channel" in text:
        reason = f"{architecture} pools to one pixel in front of a batch norm: batch_size must be at least 2, got 1"
    elif "downsampling pattern" in text:
        reason = (
            f"{architecture} needs feature maps at several scales, which encoder {encoder!r} does not give;"
            " DPT takes plain transformers"
        )
    elif "Only Timm encoders" in text:
        reason = f"{architecture} takes timm's transformers only (encoder names that start with tu-), got {encoder!r}"
    elif "not support" in text and encoder.startswith("mit_"):
        reason = f"{architecture} does not take the encoders mit_b0 to mit_b5, got {encoder!r}"
    elif divisor := re.search(r"Wrong input shape.* divisible by (\d+)", text):
        reason = f"{architecture} with encoder {encoder!r} takes an image_size that {divisor[1]} divides"
    elif "doesn't match model" in text:
        reason = f"encoder {encoder!r} takes one image size only ({text})"
    else:
        reason = (
            f"{architecture} with encoder {encoder!r} cannot {doing} ({type(error).__name__}: {text or 'no words'})"
        )
    return reason


def explain_missing_weights(architecture: str, encoder: str, error: BaseException) -> str:
    """Say why ImageNet weights could not be had, and what to write instead."""
    root = error
    while root.__cause__ or root.__context__:  # "Name or service not known" says more than what wraps it
        root = root.__cause__ or root.__context__
    lines = str(root).strip().split("\n")
    cause = (lines[1] if "size mismatch" in str(root) and len(lines) > 1 else lines[0]).strip()[:160]
    return (
        f"{architecture}: ImageNet weights of encoder {encoder!r} could not be had ({cause or type(root).__name__});"
        ' two ways out: encoder_weights: "" trains from scratch, encoder_weights: PATH loads a state dict file from disk'
    )
