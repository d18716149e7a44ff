"""Model directories with tiny random weights, laid out as diffusers lays them out: the real classes, in milliseconds.

What they draw is noise. The seed of the weights is fixed, so that two builders of one directory write the same model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LTXVideoTransformer3DModel,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = ("a", "ball", "boat", "cat", "red", "blue", "drifts", "spins", "over", "the", "sea", "moon", "blurry", "grey")
TEXT_WIDTH = 32
SCHEDULERS = {
    "flow-match-euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "unipc": lambda: UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
    ),
    "unipc-order-3": lambda: UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=3
    ),
    "dpm++-2m": lambda: DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
    ),
    "sde-dpm++-2m": lambda: DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="sde-dpmsolver++"
    ),
}
"""Schedulers of flow matching by name: without history, with history, and one that draws noise at each step."""


def tiny_wan(
    place: Path,
    *,
    scheduler: str = "unipc",
    boundary_ratio: float | None = None,
    expand_timesteps: bool = False,
    beside: bool = False,
    image_dim: int | None = None,
) -> Path:
    """As Wan 2.1; with `boundary_ratio` two transformers as Wan 2.2. Compression 8 x 8 x 4, patches of 2. `beside`: a
    first frame is read in channels of its own, as by Wan 2.2 I2V."""
    torch.manual_seed(1)
    channels = {"in_channels": 36, "out_channels": 16} if beside else {}
    transformers = {"transformer": _wan_transformer(image_dim=image_dim, **channels)}
    if boundary_ratio is not None:
        transformers["transformer_2"] = _wan_transformer(**channels)
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    config = UMT5Config(
        vocab_size=64, d_model=TEXT_WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4, relative_attention_num_buckets=8
    )
    parts = {
        "tokenizer": _tokenizer(512),
        "text_encoder": UMT5EncoderModel(config),
        "vae": vae,
        "scheduler": SCHEDULERS[scheduler](),
        **transformers,
    }
    pipeline = "WanImageToVideoPipeline" if beside else "WanPipeline"
    if beside:
        parts |= {"image_encoder": None, "image_processor": None}
    return _write(place, pipeline, parts, {"boundary_ratio": boundary_ratio, "expand_timesteps": expand_timesteps})


def tiny_ltx(place: Path, *, scheduler: str = "flow-match-euler") -> Path:
    """Text to video as LTX-Video. 4 x 4 x 4 compression, no patches."""
    torch.manual_seed(2)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=TEXT_WIDTH,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    config = T5Config(vocab_size=64, d_model=TEXT_WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    parts = {
        "tokenizer": _tokenizer(128),
        "text_encoder": T5EncoderModel(config),
        "vae": vae,
        "transformer": transformer,
        "scheduler": SCHEDULERS[scheduler](),
    }
    return _write(place, "LTXPipeline", parts)


def tiny_stable_diffusion(place: Path) -> Path:
    """Text to image as Stable Diffusion. 8 x 8 compression."""
    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=8,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=2,
    )
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=TEXT_WIDTH,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        bos_token_id=1,
        eos_token_id=1,
    )
    parts = {
        "tokenizer": _tokenizer(77),
        "text_encoder": CLIPTextModel(config),
        "vae": vae,
        "unet": unet,
        "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
    }
    return _write(place, "StableDiffusionPipeline", parts, {"requires_safety_checker": False})


def _wan_transformer(**more: Any) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
        **more,
    )


def _tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
    )


def _write(place: Path, pipeline: str, parts: dict[str, Any], settings: dict[str, Any] | None = None) -> Path:
    index: dict[str, Any] = {"_class_name": pipeline, **(settings or {})}
    for name, part in parts.items():
        if part is None:
            index[name] = [None, None]
            continue
        part.save_pretrained(place / name)
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    (place / "model_index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return place
